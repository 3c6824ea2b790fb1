/* Refreshes the page of connections: as long as it is seen, and nobody has paused it. */
"use strict";

(() => {
    const page = document.getElementById("connections");
    if (!page) {
        return;
    }
    const [live, findings, summary, when, problem, pause, again] = [
        "live", "findings", "summary", "when", "problem", "pause", "again",
    ].map((name) => document.getElementById(`connections-${name}`));
    const interval = Number(page.dataset.seconds) * 1000;
    // A pool that has nothing to give makes a look-up wait, 30 seconds where nobody has said otherwise.
    const patience = 60000;

    let ticket = page.dataset.ticket;
    let timer = null;
    let asking = null;
    let paused = false;
    let over = false;

    async function ask(url, signal) {
        const response = await fetch(url, {
            headers: {"X-Conn-Hygiene-Ticket": ticket},
            credentials: "same-origin",
            redirect: "manual",
            cache: "no-store",
            signal,
        });
        if (response.type === "opaqueredirect" || response.status === 403) {
            over = true;
            throw new Error("You are signed out, or may not see this any more.");
        }
        if (!response.ok) {
            throw new Error(`The server answered ${response.status}.`);
        }
        const answer = await response.json();
        // Without one, whoever looks could not be looked up: the old one goes on for what is left of it.
        ticket = answer.ticket || ticket;
        return answer;
    }

    /* Whoever has selected something, to copy it, is not to lose it. */
    function isSelecting() {
        const selection = document.getSelection();
        return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
    }

    function keys() {
        return new Set(Array.from(live.querySelectorAll("[data-key]"), (row) => row.dataset.key));
    }

    function show(answer) {
        const before = keys();
        const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
        const scrolled = Array.from(live.querySelectorAll(".connections-scroll"), (each) => [each.id, each.scrollLeft]);
        live.innerHTML = answer.html;
        for (const row of live.querySelectorAll("[data-key]")) {
            row.classList.toggle("new", !before.has(row.dataset.key));
        }
        for (const [id, left] of scrolled) {
            const element = document.getElementById(id);
            if (element) {
                element.scrollLeft = left;
            }
        }
        if (focused) {
            // What had the focus may be gone; then its keys go on from the button, and not from the page's top.
            (document.getElementById(focused) || pause).focus({preventScroll: true});
        }
        // Read out when it has changed, and not each time.
        if (summary.textContent !== answer.summary) {
            summary.textContent = answer.summary;
        }
        when.textContent = answer.when;
    }

    function complain(text) {
        problem.hidden = !text;
        if (problem.textContent !== text) {
            problem.textContent = text;
        }
    }

    async function refresh() {
        if (asking || over) {
            return;
        }
        clearTimeout(timer);
        asking = new AbortController();
        const limit = setTimeout(() => asking.abort(), patience);
        try {
            const answer = await ask(page.dataset.live, asking.signal);
            if (!isSelecting()) {
                show(answer);
            }
            complain("");
        } catch (error) {
            if (!document.hidden) {
                const text = error.name === "AbortError" ? "The server does not answer." : error.message;
                complain(`Not refreshed: ${text}`);
            }
        } finally {
            clearTimeout(limit);
            asking = null;
            schedule();
        }
    }

    function schedule() {
        clearTimeout(timer);
        if (!paused && !over && !document.hidden) {
            timer = setTimeout(refresh, interval);
        }
    }

    pause.hidden = false;
    pause.addEventListener("click", () => {
        paused = !paused;
        pause.setAttribute("aria-pressed", String(paused));
        if (paused) {
            clearTimeout(timer);
        } else {
            refresh();
        }
    });
    again.addEventListener("click", (event) => {
        event.preventDefault();
        refresh();
    });
    document.addEventListener("visibilitychange", () => {
        if (document.hidden) {
            clearTimeout(timer);
        } else if (!paused) {
            refresh();
        }
    });

    // What takes longer comes when the page is there.
    if (findings.querySelector("a[href$='?findings']")) {
        ask(page.dataset.findings).then(
            (answer) => { findings.innerHTML = answer.html; },
            (error) => { complain(`No findings: ${error.message}`); },
        );
    }
    schedule();
})();
