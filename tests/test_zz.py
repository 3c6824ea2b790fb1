from tests.test_tenants import *
pytestmark = pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("releasing", "database")
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("role", [True, False])
@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("names", ["auto", ["app.tenant_id"], []])
def test_x(settings, n, role, ask, names):
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "FOLLOWED_SETTINGS": names}
    if ask:
        run("SELECT 1"); wait_until_released(); run("SELECT become_tenant(3)"); wait_until_released(); connection.close()
    with session_settings({"app.tenant_id": 7}):
        for _ in range(n):
            if role:
                with session_settings({"role": "pg_read_all_data"}):
                    run(MINE)
            else:
                assert run(WHOSE) == [("7",)]
            wait_until_released()
    assert run(WHOSE)[0][0] in (None, "")
