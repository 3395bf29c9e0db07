"""A federation in one process: no daemon, no Ray, the same server and client code. For tests, studies and baselines."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from jointdiff.config import RunConfig
from server.rounds import run_federation

RUN_ID = 1
SERVER_NODE_ID = 1  # Flower's SuperLink has this id; hospitals' nodes come after it


class LocalGrid(Grid):
    """Calls the ClientApp when a reply is pulled, with a copy of the message, as if it had come over a network."""

    def __init__(self, app: ClientApp = client_app, *, num_nodes: int = 1) -> None:
        # Flower's Message reads these; in a real run Flower's own processes set them.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID
        self._app = app
        self._contexts = {
            node_id: Context(RUN_ID, node_id, {}, RecordDict(), {})
            for node_id in range(SERVER_NODE_ID + 1, SERVER_NODE_ID + 1 + num_nodes)
        }
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """Return the one run."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        message_ids = []
        for message in messages:
            message_id = f"message-{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
            self._waiting[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp on each message and return the replies."""
        return [self._answer(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        """Return the ClientApp's reply, or Flower's error reply where it raised."""
        arrived = Message(copy.deepcopy(message.content), metadata=message.metadata)  # type: ignore[call-overload]
        try:
            return self._app(arrived, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)


def run_local(run: RunConfig, callback: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Run a federation in this process and return the run's folder.

    Args:
        run: What the user asks for.
        callback: Called with every event.

    Raises:
        JointDiffError: The run cannot start, or ended without a result.
    """
    num_nodes = run.num_hospitals if run.secure_aggregation else 1  # a secure sum wants a SuperNode for each hospital
    return run_federation(LocalGrid(num_nodes=num_nodes), run, callback=callback)
