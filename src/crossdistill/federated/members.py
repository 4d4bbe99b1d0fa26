"""Who takes part: nodes that joined, what they said of themselves, and whether they fit the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from crossdistill.federated.client_app import FAILED, JOIN
from crossdistill.federated.messages import FACTS, TASK
from crossdistill.federated.settings import FederateSettings

LONGEST_NAME = 100

_POLL_SECONDS = 0.2
_TURNED_AWAY = "turned away: "


Shared = tuple[str, tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class Member:
    """A client that joined; ``node`` is how Flower calls it, which differs from run to run.

    ``own_test``: its test images are its own, and not those of all.
    """

    node: int
    client: int
    name: str
    model: str
    architecture: str
    num_train: int
    num_val: int
    num_transfer: int
    num_test: int
    own_test: bool
    transfer: str
    class_names: tuple[str, ...]

    @property
    def shared(self) -> Shared:
        """What all members must have alike: transfer set, classes, and how many images the former has."""
        return self.transfer, self.class_names, self.num_transfer


@dataclass(slots=True)
class Members:
    """All nodes that joined so far, and those that were turned away, with the reason."""

    settings: FederateSettings
    by_node: dict[int, Member] = field(default_factory=dict)
    turned_away: dict[int, str] = field(default_factory=dict)

    @property
    def present(self) -> list[Member]:
        """Members in the order of their clients."""
        return sorted(self.by_node.values(), key=lambda one: one.client)

    @property
    def pattern(self) -> Member | None:
        """The member whose transfer set and classes are those of all."""
        return self.present[0] if self.by_node else None

    def meet(self, grid: Grid, *, wait: float, say: Callable[[str], None]) -> list[str]:
        """Let nodes that are new join, waiting so long for all clients to be there; notes on those that may not.

        Nodes that are gone are no longer members.
        """
        end = time.monotonic() + wait
        while len(list(grid.get_node_ids())) < self.settings.clients and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        here = set(grid.get_node_ids())
        for node in [one for one in self.by_node if one not in here]:
            del self.by_node[node]
        new = sorted(here - set(self.by_node))  # those that were turned away may have been mended
        if not new:
            return []
        told = RecordDict({TASK: ConfigRecord({"settings": self.settings.model_dump_json()})})
        asked = [Message(told, dst_node_id=node, message_type=JOIN) for node in new]
        replies = list(grid.send_and_receive(asked, timeout=self.settings.patience))
        before = set(self.turned_away.values())
        notes = [note for note in self.admit(replies) if note.removeprefix(_TURNED_AWAY) not in before]
        for note in notes:
            say(note)
        return notes

    def admit(self, replies: Sequence[Message]) -> list[str]:
        """Take in those that fit; a note on each that does not. A node that did not answer is asked again."""
        said, notes = {}, []
        for reply in replies:
            node, facts = reply.metadata.src_node_id, facts_of(reply)
            if reply.has_error():  # of a node that is gone, Flower's own node answers
                notes.append("a node did not answer when it was to join; it will be asked again")
            elif FAILED in facts:
                notes.append(self._turn_away(node, f"node {node}: {facts[FAILED]}"))
            else:
                said[node] = facts
        joined = {}
        for node, facts in said.items():
            try:
                joined[node] = _member(node, facts)
            except (KeyError, TypeError, ValueError) as error:
                notes.append(self._turn_away(node, f"node {node}: it says of itself what makes no sense ({error})"))
        known = list(self.by_node.values()) + list(joined.values())
        common = Counter(one.shared for one in known).most_common()
        shared = self.pattern.shared if self.pattern else common[0][0] if common else None
        for node, member in sorted(joined.items(), key=lambda item: (item[1].client, item[0])):
            reason = self._misfit(member, shared)
            if reason is None:
                self.by_node[node] = member
                self.turned_away.pop(node, None)
            else:
                notes.append(self._turn_away(node, f"client {member.client} ({member.name}): {reason}"))
        return notes

    def _misfit(self, member: Member, shared: Shared | None) -> str | None:
        twin = next((one for one in self.by_node.values() if one.client == member.client), None)
        if twin is not None:
            return f"another node is client {member.client} already; give each node a partition-id of its own"
        if shared is not None and member.class_names != shared[1]:
            return f"its {len(member.class_names)} classes are not those of the others, or in another order"
        if shared is not None and member.shared != shared:
            return "its transfer set is not that of the others, or in another order"
        return None

    def _turn_away(self, node: int, note: str) -> str:
        self.turned_away[node] = note
        return f"{_TURNED_AWAY}{note}"


def facts_of(reply: Message) -> Mapping[str, Any]:
    """What a reply says beside arrays and figures; of one that is an error, that it failed."""
    if reply.has_error():
        return {FAILED: f"no answer (Flower error {reply.error.code})"}
    found: Mapping[str, Any] = reply.content.config_records.get(FACTS, {})
    return found if found else {FAILED: "an answer without facts"}


def _member(node: int, facts: Mapping[str, Any]) -> Member:
    """What a node says of itself; KeyError, TypeError or ValueError where that is nothing to work with."""
    counts = {key: int(facts[key]) for key in ("client", "num_train", "num_val", "num_transfer", "num_test")}
    if min(counts.values()) < 0 or max(counts.values()) > 2**40:
        raise ValueError(f"numbers {list(counts.values())}")
    names = facts["class_names"]
    if not isinstance(names, list) or not names:
        raise ValueError("no names of classes")
    return Member(
        node=node,
        **counts,
        name=str(facts["name"])[:LONGEST_NAME],
        model=str(facts["model"])[:LONGEST_NAME],
        architecture=str(facts["architecture"])[:LONGEST_NAME],
        own_test=bool(facts["own_test"]),
        transfer=str(facts["transfer"])[:LONGEST_NAME],
        class_names=tuple(map(str, names)),
    )
