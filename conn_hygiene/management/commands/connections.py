"""``manage.py connections``: show this application's sessions on the server, watch them, end them, and find fault."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from time import sleep
from typing import TYPE_CHECKING, Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from conn_hygiene import conf, internals, pages
from conn_hygiene.management import asking, auditing, rendering
from conn_hygiene.management.rendering import Line, Status
from conn_hygiene.masking import printable
from conn_hygiene.reaper import reaper
from conn_hygiene.server import doctor
from conn_hygiene.server import sessions as server
from conn_hygiene.server.findings import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conn_hygiene.management.rendering import Block

#: Exit codes, beside 0. The second is argparse's own; a Nagios plugin's are 1 for a warning and 3 for "unknown".
FOUND, MISUSED, NOT_ASKED = 1, 2, 3


def _number_of(kind: type, least: float, most: int) -> Callable[[str], Any]:
    """Return a converter for argparse that takes numbers of *kind* from *least* to *most*."""

    def convert(text: str) -> Any:
        # What is no number at all is a ValueError, too; and NaN is in no range.
        with suppress(ValueError):
            value = kind(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"not a number from {least:g} to {most}: {text!r}")

    return convert


_seconds = _number_of(float, 0, conf.LONGEST)
_interval = _number_of(float, 0.1, conf.LONGEST)
_count = _number_of(int, 1, 10**9)
_rows = _number_of(int, 0, 10**9)


def _path(text: str) -> str:
    """Return *text*, which is to be what stands behind the host in a URL."""
    # Behind two of them a host is understood.
    if not re.match(r"/(?!/)", text):
        raise argparse.ArgumentTypeError(f"not a path that begins with one slash, such as '/orders/7/': {text!r}")
    return text


class Command(BaseCommand):
    """Each subcommand is a method of the same name."""

    help = "Shows this application's sessions as PostgreSQL sees them, ends sessions, and says what will hurt."
    # It is run where something is wrong already, which the checks would only say before it has begun.
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django declares it

    # ##### Arguments #####

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommands, each with Django's common options as well: people write those last."""
        subparsers = parser.add_subparsers(dest="subcommand", required=True, title="subcommands")

        def add(name: str, help: str) -> CommandParser:
            subparser: CommandParser = subparsers.add_parser(name, help=help, description=help)
            _add_common_options(subparser)
            return subparser

        self._add_status(add("status", "Shows the sessions of this application, by state."))
        self._add_watch(add("watch", "Shows the same again and again, until Ctrl-C."))
        self._add_terminate(add("terminate", "Ends sessions that match, after showing them and asking."))
        self._add_doctor(add("doctor", "Looks at settings and servers, and says what will hurt, worst first."))
        self._add_audit(add("audit", "Runs the project's URLs or tests, and says what they leave in sessions unseen."))
        self._add_docs(add("docs", "Shows a page of the documentation, or lists all."))

    def _add_status(self, parser: CommandParser) -> None:
        _add_databases(parser)
        _add_all_users(parser)
        _add_format(parser)
        _add_limit(parser)
        parser.add_argument(
            "--fail-if-idle-in-transaction",
            type=_seconds,
            metavar="SECONDS",
            help=f"Exits with {FOUND} if a session has been idle in transaction for that long.",
        )

    def _add_watch(self, parser: CommandParser) -> None:
        _add_databases(parser)
        _add_all_users(parser)
        _add_format(parser)
        _add_limit(parser)
        parser.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="Default: 1.")
        parser.add_argument("--count", type=_count, metavar="N", help="Ends after N times.")

    def _add_terminate(self, parser: CommandParser) -> None:
        # Collected as for the others, so that a second one is refused and does not replace the first.
        _add_databases(parser, help=f"Default: {DEFAULT_DB_ALIAS}, or the only one that is PostgreSQL.")
        _add_all_users(parser)
        parser.add_argument(
            "--all-databases", action="store_true", help="Sessions in the server's other databases too."
        )
        for name, state in (("--idle-in-transaction", "idle in transaction"), ("--idle", "idle, in no transaction,")):
            parser.add_argument(name, type=_seconds, metavar="SECONDS", help=f"Those that have been {state} that long.")
        parser.add_argument(
            "--pid",
            type=int,
            action="append",
            default=[],
            dest="pids",
            metavar="PID",
            help="This one; may be repeated.",
        )
        parser.add_argument("--yes", action="store_true", help="Does not ask.")
        parser.add_argument("--dry-run", action="store_true", help="Shows what matches, and ends nothing.")

    def _add_doctor(self, parser: CommandParser) -> None:
        _add_databases(parser)
        _add_format(parser)
        parser.add_argument(
            "--processes",
            type=_count,
            metavar="N",
            help="How many processes use the databases: in all; with --hosts, on each of them.",
        )
        parser.add_argument("--hosts", type=_count, metavar="N", help="On how many hosts there are that many.")
        parser.add_argument("--threads", type=_count, metavar="N", help="How many threads each of them has.")
        parser.add_argument(
            "--fail-level",
            default=str(doctor.Level.ERROR),
            choices=[str(level) for level in reversed(doctor.Level)],
            help=f"Exits with {FOUND} from this level on. Default: %(default)s.",
        )

    def _add_audit(self, parser: CommandParser) -> None:
        _add_format(parser)
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--urls",
            nargs="+",
            type=_path,
            metavar="PATH",
            help='Gets these, such as "/orders/7/". Default: all URLs of the project that have no parameters.',
        )
        what.add_argument(
            "--test", nargs="*", metavar="LABEL", help="Runs the project's tests, or those of the labels, in its place."
        )

    def _add_docs(self, parser: CommandParser) -> None:
        parser.add_argument(
            "page", nargs="?", metavar="PAGE", help='Such as "doctor", or "doctor#no-pool" or "W013" for a section.'
        )
        parser.add_argument("--path", action="store_true", help="Says where it is, and shows nothing of it.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the subcommand."""
        try:
            self._run(options)
        except BrokenPipeError:
            # Whoever read it has seen enough, as "head" has: the way to end a watch, and what ends nothing else well.
            self._say_nothing_more()
            if options["subcommand"] != "watch":
                raise CommandError("Nobody reads the output any more.", returncode=NOT_ASKED) from None

    def _say_nothing_more(self) -> None:
        """Have what is still to be written go nowhere, or Python fails to write it when it exits."""
        # Where there is no file behind it, there is no pipe either.
        with suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as nowhere:
            # By 2>&1, errors go the same way.
            if os.path.sameopenfile(self.stdout.fileno(), self.stderr.fileno()):
                os.dup2(nowhere.fileno(), self.stderr.fileno())
            os.dup2(nowhere.fileno(), self.stdout.fileno())

    def _run(self, options: dict[str, Any]) -> None:
        if options["subcommand"] == "docs":
            # It asks no server, and needs nothing of anybody.
            self.docs(options)
            return
        # The modules of commands are loaded by now.
        internals.look()
        if not internals.COMMAND.available:
            missing = ", ".join(internals.COMMAND.missing)
            raise CommandError(f"This needs {missing}, which is missing.", returncode=NOT_ASKED)
        getattr(self, options["subcommand"])(options)

    # ##### status #####

    def status(self, options: dict[str, Any]) -> None:
        """Show the sessions once, and fail if that was asked for."""
        with ExitStack() as stack:
            status = asking.collect(
                asking.Source(stack, _databases(options), server.Scope(options["all_users"])), options["limit"]
            )
        if options["format"] == "json":
            self._write(rendering.dumped(rendering.status_json(status)))
        else:
            self._show(rendering.status_blocks(status), options)
        failed = [f"{', '.join(view.aliases)}: {view.error}" for view in status.views if view.error]
        if failed:
            raise CommandError("\n".join(failed), returncode=NOT_ASKED)
        self._fail_if_idle_in_transaction(status, options["fail_if_idle_in_transaction"])

    def _fail_if_idle_in_transaction(self, status: Status, limit: float | None) -> None:
        if limit is None:
            return
        sessions = [session for view in status.views if view.activity for session in view.activity.counted]
        late = [s for s in sessions if s.is_idle_in_transaction and s.in_state is not None and s.in_state >= limit]
        if late:
            pids = ", ".join(str(session.pid) for session in late)
            raise CommandError(f"Idle in transaction for {limit:g} s or longer: pid {pids}.", returncode=FOUND)

    # ##### watch #####

    def watch(self, options: dict[str, Any]) -> None:
        """Show the sessions until Ctrl-C, over connections that are kept, and opened again when they break."""
        try:
            with ExitStack() as stack, self._drawing(options) as draw:
                source = asking.Source(stack, _databases(options), server.Scope(options["all_users"]))
                shown = 0
                while True:
                    draw(asking.collect(source, options["limit"]))
                    shown += 1
                    if shown == options["count"]:
                        return
                    sleep(options["interval"])
        except KeyboardInterrupt:
            # The way to end it, and so no failure.
            return

    @contextmanager
    def _drawing(self, options: dict[str, Any]) -> Iterator[Callable[[Status], None]]:
        """Yield what shows a status: in the place of the one before on a terminal, else below it."""
        if options["format"] == "json":
            yield lambda status: self._write(rendering.dumped(rendering.status_json(status), indent=None))
            return
        console = self._console(options)
        if console is None or not console.is_terminal:
            yield lambda status: self._show([_now(), *rendering.status_blocks(status), Line("")], options)
            return
        from conn_hygiene.contrib import rich

        with rich.live(console) as update:
            yield lambda status: update([_now(), *rendering.status_blocks(status)])

    # ##### terminate #####

    def terminate(self, options: dict[str, Any]) -> None:
        """End the sessions that match, and say what came of each."""
        if options["idle_in_transaction"] is None and options["idle"] is None and not options["pids"]:
            criteria = "--idle-in-transaction SECONDS, --idle SECONDS or --pid PID"
            raise CommandError(f"Say which sessions: {criteria}.", returncode=MISUSED)
        alias = _one_database(options)
        try:
            with server.connect(alias) as connection:
                self._terminate(connection, alias, options)
        except psycopg.Error as error:
            raise CommandError(f"{alias}: {asking.words(error)}", returncode=NOT_ASKED) from error

    def _terminate(self, connection: psycopg.Connection[Any], alias: str, options: dict[str, Any]) -> None:
        scope = server.Scope(options["all_users"], options["all_databases"])
        sessions = server.activity(connection, scope).counted
        matches = [session for session in sessions if _matches(session, options)]
        missing = sorted(set(options["pids"]) - {session.pid for session in matches})
        for pid in missing:
            self._write(f"{pid}: no such session of the role and database of {alias}, or not one that may be ended.")
        if matches:
            self._show([rendering.sessions_table(matches)], options)
        elif not missing:
            self._write(f"No session of {alias} matches.")
        if (missing or not matches) and (others := _elsewhere(alias, options)):
            # status shows those of all.
            self._write(f"Not looked at: {', '.join(f'--database {shlex.quote(other)}' for other in others)}.")
        if matches and not options["dry_run"] and self._confirmed(len(matches), options):
            missing += self._end(connection, matches, options)
        if missing:
            raise CommandError(f"Not ended: {', '.join(map(str, missing))}.", returncode=FOUND)

    def _confirmed(self, count: int, options: dict[str, Any]) -> bool:
        if options["yes"]:
            return True
        # Where it is read also if the output goes into a file.
        question = f"End {number(count, 'session', 'sessions')}? Each loses its open transaction. [y/N] "
        self.stderr.write(question, ending="")
        self.stderr.flush()
        try:
            answer = input()
        except EOFError:
            raise CommandError("There is nobody to ask; --yes ends them without asking.") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was ended.")
        return True

    def _end(
        self, connection: psycopg.Connection[Any], matches: list[server.Session], options: dict[str, Any]
    ) -> list[int]:
        """End *matches*; return the pids of those that are still there."""
        remaining = []
        for session in matches:
            outcome = server.terminate(connection, session, whatever_state=session.pid in options["pids"])
            self._write(f"{session.pid}: {outcome.value}")
            if outcome not in (server.Outcome.ENDED, server.Outcome.GONE):
                remaining.append(session.pid)
        return remaining

    # ##### doctor #####

    def doctor(self, options: dict[str, Any]) -> None:
        """Show what is wrong, and fail if it is bad enough."""
        aliases = _databases(options)
        counts = {name: options[name] for name in ("processes", "threads", "hosts")}
        findings = doctor.diagnose(asking.project(aliases, **counts), asking.facts(aliases), datetime.date.today())  # noqa: DTZ011
        if options["format"] == "json":
            self._write(rendering.dumped(rendering.findings_json(findings)))
        else:
            nothing = [Line("Nothing was found that will hurt.", rendering.GOOD)]
            self._show(rendering.finding_blocks(findings) or nothing, options)
        bad = [found for found in findings if found.level >= doctor.Level[options["fail_level"].upper()]]
        if bad:
            what = "1 finding is" if len(bad) == 1 else f"{len(bad)} findings are"
            raise CommandError(f"{what} of level {options['fail_level']} or above.", returncode=FOUND)

    # ##### docs #####

    def docs(self, options: dict[str, Any]) -> None:
        """Show one page, or where it is; without one, all of them by name."""
        if options["page"] is None:
            found = pages.all_pages()
            if not found:
                raise CommandError(f"No pages are installed; see {pages.where('index.rst')}.", returncode=NOT_ASKED)
            width = max(len(page.name) for page in found)
            self._write("\n".join(f"{page.name:{width}}  {page.title}" for page in found))
            return
        name, _, anchor = options["page"].partition("#")
        page, place = self._page(name, whole=bool(anchor))
        text, where = page.path.read_text("utf-8"), f"{page.name}.rst"
        if anchor:
            place = self._place(page, text, anchor)
        if place is not None:
            where = f"{where}#{pages.fragment(text, place)}"
            text = pages.section(text, place)
        where = pages.where(where)
        self._write(pages.told(where) if options["path"] else text.rstrip())

    def _page(self, name: str, *, whole: bool) -> tuple[pages.Page, str | None]:
        """Return the page that *name* means, or a section and its page; a *whole* page only, if that is wanted."""
        found: list[tuple[pages.Page, str | None]] = [(page, None) for page in pages.matching(name)]
        if not found and not whole:
            found = [*pages.sections(name)]
        if not found:
            what = "no page of the documentation" if whole else "no page of the documentation, and no section of one"
            raise CommandError(f"{printable(name)!r} is {what}. {self._nearly(name, whole=whole)}", returncode=MISUSED)
        if len(found) > 1:
            names = [page.name if place is None else f"{page.name}#{place}" for page, place in found]
            raise CommandError(f"{printable(name)!r} may be {' or '.join(names)}.", returncode=MISUSED)
        return found[0]

    def _nearly(self, name: str, *, whole: bool) -> str:
        all_pages = pages.all_pages()
        possible = [page.name.rpartition("/")[2] for page in all_pages]
        if not whole:
            possible += [place for page in all_pages for place in pages.places(page.path.read_text("utf-8"))]
        return _did_you_mean(pages.alike(name, possible)) or "Without a name, it lists all."

    def _place(self, page: pages.Page, text: str, anchor: str) -> str:
        place = pages.place_of(text, anchor)
        if place is None:
            there = pages.places(text)
            which = _did_you_mean(pages.alike(anchor, there)) or f"It has: {', '.join(there)}."
            what = f"The page {page.name} has no section {printable(anchor)!r}."
            raise CommandError(f"{what} {which}", returncode=MISUSED)
        return place

    # ##### audit #####

    def audit(self, options: dict[str, Any]) -> None:
        """Run URLs or tests with all sessions audited, show what they left unseen, and fail if they did."""
        _databases({"databases": None})
        if reaper.running is None:
            raise CommandError("The toolkit is not installed in this process.", returncode=NOT_ASKED)
        # What views and tests print, Django's test runner first, is none of the command's output.
        with redirect_stdout(sys.stderr), auditing.audited() as found:
            failed = self._run_tests(options) if options["test"] is not None else self._get(options)
        if options["format"] == "json":
            self._write(rendering.dumped(rendering.unseen_json(found)))
        else:
            nothing = [Line("Nothing was left in a session unseen.", rendering.GOOD)]
            self._show(rendering.unseen_blocks(found) or nothing, options)
        if found:
            failed.insert(0, "Statements have left in their sessions what they do not say.")
        if failed:
            raise CommandError("\n".join(failed), returncode=FOUND if found else NOT_ASKED)

    def _run_tests(self, options: dict[str, Any]) -> list[str]:
        said = auditing.run_tests(options["test"], verbosity=options["verbosity"])
        return [] if said is None else [said]

    def _get(self, options: dict[str, Any]) -> list[str]:
        """Get each of the URLs; return what is to be said of those that failed, or of which no view was run."""
        paths = options["urls"] or auditing.paths()
        if not paths:
            raise CommandError("This project has no URL without parameters; name some with --urls.", returncode=MISUSED)
        answers = self._ask(paths, options)
        said = []
        if broken := [printable(path) for path, answer in answers.items() if answer.status >= 500]:
            said.append(f"Not audited to the end, since they failed: {', '.join(broken)}.")
        unanswered = {path: answer for path, answer in answers.items() if not answer.is_from_view}
        said += self._unanswered(unanswered, len(answers), options)
        if said and any(answer.is_refused for answer in unanswered.values()):
            said.append("Nobody is logged in here. Tests that log in can be run in their place, with --test.")
        return said

    def _ask(self, paths: list[str], options: dict[str, Any]) -> dict[str, auditing.Answer]:
        """Request each of *paths*, and show which one is waited for."""
        listed = options["verbosity"] >= 2 and options["format"] == "text"
        answers = {}
        for place, path in enumerate(paths, 1):
            self._show_meanwhile(f"{place} of {len(paths)}: {printable(path)}")
            answers[path] = auditing.request(path)
            self._show_meanwhile("")
            if listed:
                self._write(f"{answers[path]} {printable(path)}")
        return answers

    def _show_meanwhile(self, text: str) -> None:
        """Show *text* in the place of the one before, where somebody looks on."""
        if self.stderr.isatty():
            # In the last column, some terminals go on to the next line.
            width = shutil.get_terminal_size().columns - 1
            self.stderr.write(f"{text:{width}.{width}}\r", str, ending="")
            self.stderr.flush()

    def _unanswered(self, unanswered: dict[str, auditing.Answer], count: int, options: dict[str, Any]) -> Iterator[str]:
        """Yield what is to be said of paths at which no view was run; of single ones only if they were named.

        One that the project lists may well be for another method, for who is logged in, or for what is not in this
        database.
        """
        if options["urls"]:
            told = ", ".join(f"{printable(path)} ({answer})" for path, answer in unanswered.items())
            if told:
                yield f"Not audited, since no view answers a GET there: {told}."
        elif len(unanswered) == count:
            yield f"Nothing was audited, since no view answers a GET at any of {count} paths."
        elif unanswered and options["format"] == "text":
            self._write(f"Views have answered at {count - len(unanswered)} of {count} paths; --verbosity 2 lists them.")

    # ##### Output #####

    def _show(self, blocks: Iterable[Block], options: dict[str, Any]) -> None:
        console = self._console(options)
        if console is None:
            width = shutil.get_terminal_size().columns if self.stdout.isatty() else None
            self._write(rendering.plain(blocks, width))
            return
        from conn_hygiene.contrib import rich

        rich.show(console, blocks)

    def _console(self, options: dict[str, Any]) -> Any:
        """Return a console of rich's for a terminal, or None where plain text is right."""
        if not (internals.TABLES.available and (self.stdout.isatty() or options["force_color"])):
            return None
        try:
            from conn_hygiene.contrib import rich
        except ImportError:
            if options["verbosity"] >= 2 and not self._has_mentioned_rich:
                self._has_mentioned_rich = True
                self.stderr.write('Tables need rich: pip install "django-conn-hygiene[rich]"', self.style.NOTICE)
            return None
        # Django's wrapper ends each write with a line break, which would break up what rich writes.
        return rich.console(self.stdout._out, no_color=options["no_color"], force_terminal=options["force_color"])

    _has_mentioned_rich = False

    def _write(self, text: str) -> None:
        # Of what others have named or written, not all may be in the encoding of the output.
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        self.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        # Into a pipe each goes when it is written, not when a buffer is full.
        self.stdout.flush()


def _add_common_options(parser: CommandParser) -> None:
    """Have the options that all commands take follow the name of the subcommand as well."""
    for name in ("--settings", "--pythonpath"):
        parser.add_argument(name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for name in ("--traceback", "--no-color", "--force-color"):
        parser.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "-v", "--verbosity", type=int, choices=range(4), default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _add_databases(parser: CommandParser, *, help: str = "May be repeated. Default: all that are PostgreSQL.") -> None:
    parser.add_argument("--database", action="append", dest="databases", metavar="ALIAS", help=help)


def _add_all_users(parser: CommandParser) -> None:
    parser.add_argument("--all-users", action="store_true", help="Sessions of other roles too.")


def _add_format(parser: CommandParser) -> None:
    parser.add_argument("--format", default="text", choices=["text", "json"], help="JSON is for scripts, and stable.")


def _add_limit(parser: CommandParser) -> None:
    parser.add_argument(
        "--limit",
        type=_rows,
        default=20,
        metavar="N",
        help="Lists N sessions and N processes at most, or hosts if there are more; 0 lists all. Default: 20.",
    )


def _databases(options: dict[str, Any]) -> list[str]:
    """Return the aliases that are asked for, or all that are PostgreSQL databases."""
    possible = server.aliases()
    for alias in options["databases"] or ():
        if alias not in possible:
            known = ", ".join(possible) or "none"
            raise CommandError(
                f"{alias!r} is no PostgreSQL database of this project. There are: {known}.", returncode=MISUSED
            )
    if not possible:
        raise CommandError("This project has no PostgreSQL database.", returncode=MISUSED)
    return list(dict.fromkeys(options["databases"] or possible))


def _did_you_mean(names: list[str]) -> str:
    return f"Did you mean {' or '.join(names)}?" if names else ""


def _one_database(options: dict[str, Any]) -> str:
    """Return the alias that is asked for; else the default one, or the only one that is a PostgreSQL database."""
    possible = _databases(options)
    if len(possible) == 1:
        return possible[0]
    if options["databases"]:
        raise CommandError("One --database at a time, please: sessions are ended there.", returncode=MISUSED)
    if DEFAULT_DB_ALIAS not in possible:
        named = " or ".join(f"--database {alias}" for alias in possible)
        raise CommandError(f"Say which: {named}.", returncode=MISUSED)
    return DEFAULT_DB_ALIAS


def _elsewhere(alias: str, options: dict[str, Any]) -> list[str]:
    """Return the aliases that lead to sessions which are not looked at by *alias*, one for each place."""
    wider = {"NAME": options["all_databases"], "USER": options["all_users"], "PASSWORD": options["all_users"]}
    places = asking.alike(server.aliases(), but=[name for name, is_wider in wider.items() if is_wider])
    return [first for first, aliases in places.items() if alias not in aliases]


def _matches(session: server.Session, options: dict[str, Any]) -> bool:
    """Return whether any of the criteria is about *session*."""
    if session.pid in options["pids"]:
        return True
    for limit, states in (
        (options["idle_in_transaction"], server.IDLE_IN_TRANSACTION_STATES),
        (options["idle"], (server.IDLE,)),
    ):
        if limit is not None and session.state in states and (session.in_state or 0.0) >= limit:
            return True
    return False


def _now() -> Line:
    return Line(datetime.datetime.now().astimezone().isoformat(" ", "seconds"), rendering.QUIET)
