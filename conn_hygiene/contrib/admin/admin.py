"""The page, its refreshes, and the ending of a session. Found by the default site; any other can register it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import django
import psycopg
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.db import Error, router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.cache import add_never_cache_headers

from conn_hygiene.contrib.admin import looking, tickets
from conn_hygiene.contrib.admin.models import Connections
from conn_hygiene.contrib.views import without_transaction
from conn_hygiene.management import asking
from conn_hygiene.masking import printable
from conn_hygiene.reports.snapshot import pool_stats
from conn_hygiene.scopes import release_connections
from conn_hygiene.server import sessions as server
from conn_hygiene.server.sessions import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from conn_hygiene.contrib.admin.looking import Look, Row

    _ModelAdmin = admin.ModelAdmin[Connections]
else:
    # Django's own takes no parameters.
    _ModelAdmin = admin.ModelAdmin

logger = logging.getLogger("conn_hygiene.admin")

_TEMPLATES = "conn_hygiene_admin"


@admin.register(Connections)
class ConnectionsAdmin(_ModelAdmin):
    """Leases, pools, sessions and findings on one page, for those with ``view_connections``.

    With ``terminate_session`` as well, one may end a session of the project's own databases and roles. For a site of
    one's own: ``site.register(Connections, ConnectionsAdmin)``.
    """

    #: Seconds from one refresh to the next.
    refresh_seconds: float = 5

    # ##### Who may #####

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody may: there are no rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may: there are no rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody may: there are no rows."""
        return False

    def has_terminate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may end sessions, which takes the right to see them."""
        user: Any = request.user
        return self.has_view_permission(request) and bool(user.has_perm(f"{self.opts.app_label}.terminate_session"))

    # ##### Addresses #####

    def get_urls(self) -> list[URLPattern]:
        """Return the page's own addresses, in the place of those that lists and forms have."""
        wrap = self.admin_site.admin_view
        return [
            path("", without_transaction(wrap(self.changelist_view)), name=self._name("changelist")),
            # Not wrapped: they have to answer when users cannot be looked up.
            path("live/", login_not_required(without_transaction(self.live_view)), name=self._name("live")),
            path("findings/", login_not_required(without_transaction(self.findings_view)), name=self._name("findings")),
            path(
                # Last, since it may have a slash in it.
                "terminate/<int:pid>/<int:started>/<path:alias>/",
                without_transaction(wrap(self.terminate_view)),
                name=self._name("terminate"),
            ),
        ]

    def _name(self, view: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{view}"

    def _address(self, view: str, *arguments: Any) -> str:
        return reverse(f"admin:{self._name(view)}", args=arguments, current_app=self.admin_site.name)

    # ##### The page #####

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show everything; without JavaScript, the findings are on an address of their own."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        may_terminate = self.has_terminate_permission(request)
        context = {
            **self._context(request, "Connections"),
            "ticket": self._ticket(request, may_terminate),
            "refresh_seconds": self.refresh_seconds,
            "here": self._address("changelist"),
            "live_url": self._address("live"),
            "findings_url": self._address("findings"),
            **(extra_context or {}),
        }
        # Whoever looks is not to hold what others wait for.
        release_connections()
        context |= self._shown(looking.look(), may_terminate)
        if "findings" in request.GET:
            context["findings"] = looking.findings()
        return TemplateResponse(request, f"{_TEMPLATES}/connections.html", context)

    def _context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        return {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            # Django 6.1 has made a list of them.
            "breadcrumbs_are_listed": django.VERSION >= (6, 1),
        }

    # ##### Refreshes #####

    def live_view(self, request: HttpRequest) -> HttpResponse:
        """Return what has changed on the page, as JSON."""
        return self._answer(request, self._live)

    def findings_view(self, request: HttpRequest) -> HttpResponse:
        """Return the doctor's findings, as JSON: they take longer, and change less often."""
        return self._answer(request, self._findings)

    def _answer(self, request: HttpRequest, told: Callable[[bool, Look | None], dict[str, Any]]) -> HttpResponse:
        """Return what *told* returns, for whoever may see it, or was allowed to a moment ago."""
        facts = tickets.accept(request, self.admin_site.name)
        # Nobody without a ticket has anything looked up for them before they are known.
        look = looking.look() if facts is not None and told == self._live else None
        ticket = ""
        if facts is None or not _nobody_can_be_looked_up(look):
            try:
                if not (self.admin_site.has_permission(request) and self.has_view_permission(request)):
                    return self.admin_site.admin_view(_denied)(request)
                known = {"may_terminate": self.has_terminate_permission(request)}
            except (Error, psycopg.Error):
                if facts is None:
                    raise
            else:
                facts = known
                ticket = self._ticket(request, **known)
        assert facts is not None
        release_connections()
        response = JsonResponse(told(facts["may_terminate"], look) | {"ticket": ticket})
        add_never_cache_headers(response)
        return response

    def _live(self, may_terminate: bool, look: Look | None) -> dict[str, Any]:
        context = self._shown(look or looking.look(), may_terminate)
        # Without the request: a project's context processors may query.
        html = render_to_string(f"{_TEMPLATES}/live.html", context)
        return {"html": html, "summary": context["look"].summary, "when": context["when"]}

    def _findings(self, may_terminate: bool, look: Look | None) -> dict[str, Any]:
        return {"html": render_to_string(f"{_TEMPLATES}/findings.html", {"findings": looking.findings()})}

    def _shown(self, look: Look, may_terminate: bool) -> dict[str, Any]:
        """Return *look* for the templates, its rows with addresses at which their sessions can be ended."""
        if may_terminate:
            for row in (row for database in look.databases for row in database.rows):
                if row.started is not None and not row.own:
                    row.address = self._address("terminate", row.session.pid, row.started, row.alias)
        return {"look": look, "when": f"{look.when:%H:%M:%S %Z}", "may_terminate": may_terminate}

    def _ticket(self, request: HttpRequest, may_terminate: bool) -> str:
        return tickets.issue(request, self.admin_site.name, may_terminate=may_terminate)

    # ##### Ending a session #####

    def terminate_view(self, request: HttpRequest, pid: int, started: int, alias: str) -> HttpResponse:
        """Ask whether the session is to be ended, and end it if that was the answer."""
        if not self.has_terminate_permission(request):
            raise PermissionDenied
        if alias not in server.aliases():
            raise Http404
        release_connections()
        outcome, known = None, {}
        try:
            with server.connect(alias, **looking.connection_parameters()) as connection:
                session = looking.find(connection, pid, started)
                if session is not None and request.method == "POST":
                    outcome = self._end(request, connection, session)
                elif session is not None:
                    known = looking.known(connection, session)
        except psycopg.Error as error:
            messages.error(request, f"Session {pid} was not ended: {alias} could not be asked. {asking.words(error)}")
            return HttpResponseRedirect(self._address("changelist"))
        if session is None:
            text = f"Session {pid} was not ended: it has ended by itself, or is not one that may be ended here."
            messages.warning(request, text)
            return HttpResponseRedirect(self._address("changelist"))
        if outcome is None:
            return self._ask(request, looking.row(session, alias, known), session)
        return self._told(request, alias, session, outcome)

    def _end(self, request: HttpRequest, connection: psycopg.Connection[Any], session: server.Session) -> Outcome:
        # As it was when it was shown: what it does now may be another request's, which nobody has looked at.
        state, since = request.POST.get("state"), _time(request.POST.get("state_change"))
        shown = dataclasses.replace(session, state=state, state_change=since)
        return server.terminate(connection, shown, whatever_state="whatever" in request.POST)

    def _ask(self, request: HttpRequest, row: Row, session: server.Session) -> HttpResponse:
        context = {
            **self._context(request, f"Terminate session {session.pid}?"),
            "row": row,
            "state_change": looking.micros(session.state_change),
            "changelist": self._address("changelist"),
        }
        return TemplateResponse(request, f"{_TEMPLATES}/terminate.html", context)

    def _told(self, request: HttpRequest, alias: str, session: server.Session, outcome: Outcome) -> HttpResponse:
        _log(request, alias, session, outcome)
        if outcome is Outcome.GONE:
            text = f"Session {session.pid} was not ended: it has gone on with its work since you looked. Look again."
            messages.warning(request, text)
            return HttpResponseRedirect(request.path)
        if outcome is not Outcome.NOT_PERMITTED:
            self._note(request, alias, session, outcome)
        self._tell(request, session, outcome)
        return HttpResponseRedirect(self._address("changelist"))

    def _tell(self, request: HttpRequest, session: server.Session, outcome: Outcome) -> None:
        if outcome is Outcome.ENDED:
            messages.success(request, f"Session {session.pid} was ended. Its transaction, if any, is rolled back.")
        elif outcome is Outcome.PENDING:
            messages.warning(request, f"Session {session.pid} was told to end, and is still there.")
        else:
            text = (
                f"The server refused to end session {session.pid}: that takes membership in its role "
                f"({session.role}), or in pg_signal_backend, and for a superuser's session, a superuser."
            )
            messages.error(request, text)

    def _note(self, request: HttpRequest, alias: str, session: server.Session, outcome: Outcome) -> None:
        """Write into the admin's own log, if it can be written: the session has been ended already."""
        from django.contrib.admin.models import DELETION, LogEntry
        from django.contrib.contenttypes.models import ContentType

        was = f"It was {session.state}: {session.statement or ''}"
        try:
            LogEntry.objects.create(
                user_id=request.user.pk,
                content_type=ContentType.objects.get_for_model(self.model),
                object_id=str(session.pid),
                object_repr=f"session {session.pid} of {session.role} in {session.database}"[:200],
                action_flag=DELETION,
                change_message=f"Terminated by alias {alias}, {outcome.value}. {was}",
            )
        except Error as error:
            logger.exception("The termination of session %d could not be written to the admin's log.", session.pid)
            messages.warning(request, f"That could not be written to the admin's log: {asking.words(error)}")


def _denied(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def _nobody_can_be_looked_up(look: Look | None) -> bool:
    """Return whether a look-up of a user would wait for a connection, or for a server that is not there."""
    alias = router.db_for_read(get_user_model())
    if look is not None and any(database.error and alias in database.aliases for database in look.databases):
        return True
    return any(not pool.available and (pool.waiting or 0 < pool.max_size <= pool.size) for pool in pool_stats(alias))


def _time(text: str | None) -> Any:
    try:
        return looking.from_micros(int(text or ""))
    except (ValueError, OverflowError):
        return None


def _log(request: HttpRequest, alias: str, session: server.Session, outcome: Outcome) -> None:
    user = printable(request.user.get_username())
    logger.warning(
        "%s has asked for session %d of %r to be terminated: %s. It was %s: %s",
        user,
        session.pid,
        alias,
        outcome.value,
        session.state,
        session.statement,
        extra={"alias": alias, "server_pid": session.pid, "user": user, "outcome": outcome.name.lower()},
    )
