#!/usr/bin/env python3
"""An application on the real LangGraph with its SQLite checkpointer: fills a database, goes on writing, and says what it finds.

usage: app.py fill|write|check DATABASE EXPECTED.json

`fill` makes sessions of every kind, old ones by a clock that is 30 days slow, and writes down the state of each. `write` keeps a
session going every 10 ms until its standard input ends. `check` reads the state of every session and goes on with those that are
there: one line of JSON on standard output.
"""

from __future__ import annotations

import importlib
import json
import operator
import sqlite3
import sys
import threading
import time
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

SLOW_SECONDS = 30 * 86_400
KINDS = ["plain", "below", "waiting", "forked", "crashed"]


class State(TypedDict):
    turns: Annotated[list[str], operator.add]
    fails: bool


def answer(state: State) -> dict[str, Any]:
    return {"turns": [f"answer {len(state['turns'])}" + "x" * 2000]}


def ask(state: State) -> dict[str, Any]:
    return {"turns": [f"approved: {interrupt('may I?')}"]}


def fail(state: State) -> dict[str, Any]:
    if state.get("fails"):
        raise ValueError("as it was told to")
    return {"turns": ["did not fail"]}


def graphs(saver: SqliteSaver) -> dict[str, Any]:
    inner = StateGraph(State)
    inner.add_node("answer", answer)
    inner.add_edge(START, "answer")
    inner.add_edge("answer", END)

    def of(*nodes: tuple[str, Any]) -> Any:
        graph = StateGraph(State)
        last = START
        for name, node in nodes:
            graph.add_node(name, node)
            graph.add_edge(last, name)
            last = name
        graph.add_edge(last, END)
        return graph.compile(checkpointer=saver)

    plain = of(("answer", answer))
    return {
        "plain": plain,
        "forked": plain,
        # Its rows stand in namespaces of their own.
        "below": of(("deep", inner.compile(checkpointer=True)), ("answer", answer)),
        "waiting": of(("answer", answer), ("ask", ask)),
        "crashed": of(("answer", answer), ("fail", fail)),
    }


def config(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


def begin(graph: Any, kind: str, thread: str) -> None:
    told = {"turns": [f"hello from {thread}"], "fails": kind == "crashed"}
    try:
        graph.invoke(told, config(thread))
    except ValueError:
        return
    if kind in ("plain", "below", "forked"):
        graph.invoke({"turns": ["and again"]}, config(thread))
    if kind == "forked":
        third = list(graph.get_state_history(config(thread)))[2]
        graph.invoke(None, graph.update_state(third.config, {"turns": ["another way"]}))


def shown(graph: Any, thread: str) -> dict[str, Any]:
    state = graph.get_state(config(thread))
    return {"values": state.values, "next": list(state.next), "history": len(list(graph.get_state_history(config(thread))))}


def go_on(graph: Any, kind: str, thread: str) -> list[str]:
    match kind:
        case "waiting":
            return graph.invoke(Command(resume="yes"), config(thread))["turns"]
        case "crashed":
            graph.update_state(config(thread), {"fails": False}, as_node="answer")
            return graph.invoke(None, config(thread))["turns"]
        case _:
            return graph.invoke({"turns": ["once more"]}, config(thread))["turns"]


def fill(saver: SqliteSaver, expected: str) -> None:
    ids = importlib.import_module("langgraph.checkpoint.base.id")
    true_time = time.time_ns
    known = {}
    for age, count in (("old", 3), ("young", 4)):
        # What the library makes its ids from. Old sessions first: it never lets an id go back.
        ids.time.time_ns = (lambda: true_time() - SLOW_SECONDS * 10**9) if age == "old" else true_time
        for kind, graph in graphs(saver).items():
            for number in range(count):
                thread = f"{age}-{kind}-{number}"
                begin(graph, kind, thread)
                known[thread] = {"kind": kind, "age": age, "state": shown(graph, thread)}
    with open(expected, "w") as file:
        json.dump(known, file)


def write(saver: SqliteSaver) -> None:
    graph = graphs(saver)["plain"]
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("writing", flush=True)
    turns, longest = 0, 0.0
    while not over.is_set():
        begun = time.monotonic()
        graph.invoke({"turns": ["tick"]}, config(f"live-{turns % 50}"))
        longest = max(longest, time.monotonic() - begun)
        turns += 1
        time.sleep(0.01)
    print(json.dumps({"turns": turns, "longest_seconds": longest}), flush=True)


def check(saver: SqliteSaver, connection: sqlite3.Connection, expected: str) -> None:
    with open(expected) as file:
        known = json.load(file)
    all_graphs = graphs(saver)
    found = {}
    for thread, what in known.items():
        graph = all_graphs[what["kind"]]
        count = lambda table: connection.execute(f"SELECT count(*) FROM {table} WHERE thread_id = ?", (thread,)).fetchone()[0]
        rows = {table: count(table) for table in ("checkpoints", "writes")}
        state = shown(graph, thread)
        found[thread] = {"rows": rows, "same": state == what["state"], "state": state}
        if rows["checkpoints"]:
            before = len(state["values"]["turns"])
            found[thread]["went_on"] = len(go_on(graph, what["kind"], thread)) > before
    print(json.dumps(found))


def main() -> None:
    verb, database, expected = sys.argv[1:4]
    connection = sqlite3.connect(database, check_same_thread=False)
    saver = SqliteSaver(connection)
    match verb:
        case "fill":
            fill(saver, expected)
        case "write":
            write(saver)
        case "check":
            check(saver, connection, expected)
    connection.close()


if __name__ == "__main__":
    main()
