"""Flower's Grid in one process: messages go straight to the ClientApp, one client after the other.

The same apps and the same messages as in simulation and deployment, without processes to start: for tests, and for
tables of many small runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class DirectGrid(Grid):
    """Nodes 1, 2, … of this process.

    Args:
        app: the ClientApp of all nodes, or one for each by its number.
        num_nodes: how many there are; node ``n`` is ``partition-id`` n - 1.
    """

    def __init__(self, app: ClientApp | Mapping[int, ClientApp], num_nodes: int) -> None:
        self.apps = app if isinstance(app, Mapping) else dict.fromkeys(range(1, num_nodes + 1), app)
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in self.apps
        }
        self.replies: dict[str, Message] = {}
        # Messages are made in the name of a task; Flower's simulation sets the same.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is one run, of which nothing need be known."""
        raise NotImplementedError("a direct grid has no run to tell of")

    def create_message(self, *args: Any, **options: Any) -> Message:
        """Flower's former way; messages are made by their constructor."""
        raise NotImplementedError("make a Message")

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered at once."""
        pushed = []
        for message in messages:
            identity = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = identity  # as Flower's own in-memory grid does
            node = message.metadata.dst_node_id
            self.replies[identity] = self.apps[node](message, self.contexts[node])
            pushed.append(identity)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers."""
        replies = [self.replies.pop(one) for one in message_ids if one in self.replies]
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send each and take its answer."""
        return self.pull_messages(list(self.push_messages(messages)))
