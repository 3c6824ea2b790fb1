"""Transaction management by hand goes on as it was when a connection was given back in between, and ends as it did."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import DatabaseError, OperationalError, close_old_connections, connections, transaction
from django.db.backends.signals import connection_created

import conn_hygiene
from conn_hygiene import closing_connections, release_between_queries, signals
from conn_hygiene.leases.wrapper import lease_of
from tests.test_forks import remade
from tests.test_lease import query
from tests.test_left_open import events_of
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Iterator

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = pytest.mark.django_db(transaction=True, databases=ALIASES)

every_alias = pytest.mark.parametrize("alias", ALIASES)


@pytest.fixture(autouse=True)
def short_grace(settings: Any) -> Iterator[None]:
    """Have connections go back a moment after their use; let each test begin with wrappers that have been connected."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001, "UNPOOLED_RELEASE_AFTER": 0.001}
    for alias in ALIASES:
        query(alias)
    connections.close_all()
    yield
    connections.close_all()


def create(alias: str, *names: str) -> None:
    for name in names:
        Item.objects.using(alias).create(name=name)


def names() -> list[str]:
    connections.close_all()
    return sorted(Item.objects.values_list("name", flat=True))


def commit(alias: str, name: str) -> None:
    """Write and commit by hand, and have the connection go back."""
    create(alias, name)
    transaction.commit(using=alias)
    wait_until_released(alias)


def commit_by_hand(alias: str) -> None:
    """The same, in a scope of its own in which autocommit is turned off."""
    with release_between_queries():
        transaction.set_autocommit(False, using=alias)
        commit(alias, "by hand")


# ##### Wrappers #####


@pytest.mark.parametrize("has_its_own", [False, True])
def test_a_wrapper_that_is_not_of_the_settings_need_not_say_whether_requests_are_atomic(has_its_own: bool) -> None:
    """Django itself asks for it only among the entries of DATABASES."""
    wrapper: Any = connections["unpooled"].copy("another")
    del wrapper.settings_dict["ATOMIC_REQUESTS"]
    if has_its_own:
        wrapper.ensure_connection()
    connections["another"] = wrapper
    try:
        with transaction.atomic(using="another"):
            create("another", "kept")
        assert wrapper.autocommit is True
    finally:
        wrapper.close()
        del connections["another"]
    assert names() == ["kept"]


# ##### Blocks #####


@every_alias
@pytest.mark.parametrize("when", ["before", "inside"])
def test_what_a_block_after_a_commit_by_hand_writes_is_rolled_back_with_the_rest(alias: str, when: str) -> None:
    with release_between_queries():
        transaction.set_autocommit(False, using=alias)
        create(alias, "kept")
        transaction.commit(using=alias)
        if when == "before":
            wait_until_released(alias)
        with transaction.atomic(using=alias):
            # Whatever the reaper finds there: a block has begun.
            lease_of(connections[alias]).idle_since -= 60
            let_the_reaper_look()
            create(alias, "undone")
            assert connections[alias].in_atomic_block
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
    assert names() == ["kept"]


@every_alias
def test_nor_is_it_committed_where_autocommit_is_off_by_the_settings(alias: str) -> None:
    with remade(alias, AUTOCOMMIT=False), release_between_queries():
        create(alias, "kept")
        transaction.commit(using=alias)
        wait_until_released(alias)
        with transaction.atomic(using=alias):
            create(alias, "undone")
        transaction.rollback(using=alias)
    assert names() == ["kept"]


# ##### Where it ends #####


@every_alias
def test_the_next_request_begins_in_autocommit(alias: str) -> None:
    request_started.send(sender=None)
    commit_by_hand(alias)
    request_finished.send(sender=None)
    request_started.send(sender=None)
    create(alias, "next")
    request_finished.send(sender=None)
    assert names() == ["by hand", "next"]


@every_alias
def test_so_does_the_next_job(alias: str) -> None:
    closing_connections(commit_by_hand)(alias)
    closing_connections(create)(alias, "next")
    assert names() == ["by hand", "next"]


@every_alias
def test_a_job_leaves_its_callers_as_it_is(alias: str) -> None:
    with release_between_queries():
        transaction.set_autocommit(False, using=alias)
        commit(alias, "kept")
        closing_connections(query)(alias)
        create(alias, "undone")
        transaction.rollback(using=alias)
    assert names() == ["kept"]


# ##### In between #####


@every_alias
def test_a_connection_goes_back_after_every_commit(alias: str) -> None:
    with release_between_queries():
        transaction.set_autocommit(False, using=alias)
        for name in "abc":
            commit(alias, name)
        create(alias, "d")
        assert not connections[alias].get_autocommit()
        transaction.rollback(using=alias)
    assert names() == ["a", "b", "c"]


@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_autocommit_that_is_off_in_the_settings_stays_turned_on(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections[alias].settings_dict, "AUTOCOMMIT", False)
    with release_between_queries():
        query(alias)
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
        create(alias, "a")
        wait_until_released(alias)
        create(alias, "b")
    assert names() == ["a", "b"]


@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_a_failed_checkout_does_not_change_it(alias: str) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError

    commit_by_hand(alias)
    connection_created.connect(fail)
    try:
        with pytest.raises(RuntimeError):
            create(alias, "not this one")
    finally:
        connection_created.disconnect(fail)
    assert not holds(alias)
    create(alias, "undone")
    transaction.rollback(using=alias)
    assert names() == ["by hand"]


def test_nor_does_one_that_the_server_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    commit_by_hand("unpooled")
    with monkeypatch.context() as patch:
        patch.setitem(connections["unpooled"].settings_dict, "PORT", "1")
        with pytest.raises(OperationalError):
            create("unpooled", "not this one")
    create("unpooled", "undone")
    transaction.rollback(using="unpooled")
    assert names() == ["by hand"]


def test_another_thread_that_may_not_close_it_does_not_change_it() -> None:
    wrapper = connections["default"]
    refused: list[DatabaseError] = []

    def close() -> None:
        try:
            wrapper.close()
        except DatabaseError as error:
            refused.append(error)

    commit_by_hand("default")
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert refused
    create("default", "undone")
    transaction.rollback()
    assert names() == ["by hand"]


# ##### As the first thing of all #####


@every_alias
def test_turned_off_before_the_first_connection_it_is_known(alias: str, settings: Any) -> None:
    settings.CONN_HYGIENE = settings.CONN_HYGIENE | {"RELEASE": "always", "IDLE_IN_TRANSACTION_AFTER": 0.02}

    def script() -> None:
        transaction.set_autocommit(False, using=alias)
        create(alias, "a")
        transaction.commit(using=alias)
        wait_until(lambda: not any(info.alias == alias for info in conn_hygiene.snapshot()), "it goes back")
        connections[alias].close()

    with events_of(signals.idle_in_transaction_detected) as idle:
        thread = threading.Thread(target=script)
        thread.start()
        thread.join()
        let_the_reaper_look()
    assert not idle
    assert names() == ["a"]


# ##### Asked for, and no more #####


def test_asking_for_the_flag_keeps_no_connection() -> None:
    with release_between_queries():
        query()
        assert transaction.get_autocommit()
        wait_until_released()


def test_nor_does_a_hook_that_runs_at_once_because_there_is_no_transaction() -> None:
    with release_between_queries():
        query()
        transaction.on_commit(wait_until_released)


def test_looking_whether_a_connection_is_obsolete_does_not_keep_it(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 0.02}
    query("persistent")
    close_old_connections()
    wait_until_released("persistent")
