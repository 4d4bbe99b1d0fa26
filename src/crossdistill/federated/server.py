"""The server's part of a run: tasks out, answers in, checked, fused and recorded; a subclass of Flower's Strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from crossdistill.errors import InputError
from crossdistill.federated.client import FEWEST, Task
from crossdistill.federated.client_app import FAILED
from crossdistill.federated.knowledge import Refused
from crossdistill.federated.members import Member, Members, facts_of
from crossdistill.federated.messages import (
    pack_task,
    read_reply,
    shapes_of,
    size_of,
    unpack_histogram,
    unpack_knowledge,
    unpack_weights,
)
from crossdistill.federated.round_log import RoundLog, Standing
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Report, Strategy, Told

Shapes = dict[str, tuple[tuple[int, ...], str]]


class Federation(FlowerStrategy):
    """One run of one strategy, round by round, as Flower drives it.

    A round is one exchange: its message brings what was fused in the round before. What clients report with their
    answers is therefore about that round; the last one is closed by an exchange of its own.

    Args:
        settings: those of the run.
        log: where rounds are recorded; a run that is found there goes on where it stopped.
        say: shows a line to whoever watches.
    """

    def __init__(self, settings: FederateSettings, log: RoundLog, say: Callable[[str], None]) -> None:
        self.settings, self.log, self.say = settings, log, say
        self.strategy: Strategy = STRATEGIES.get(settings.strategy).value(settings)
        self.members = Members(settings)
        self.told: Mapping[int, Told] = {}
        self.answered: dict[int, Answer] = {}
        self.shapes: dict[str, Shapes] = {}
        self.asked: dict[int, tuple[Member, int]] = {}
        self.closing = False
        self.begun = time.monotonic()
        standing = log.standing()
        self.offset = 0
        if standing is not None:
            self.offset, self.told = standing.round, standing.told
            if not log.closed:
                self.strategy.restore(standing.strategy)

    def run(self, grid: Grid) -> None:
        """All rounds that are left, and what closes the last one.

        Raises:
            InputError: nobody is there, nobody answers, or networks that the strategy cannot serve.
        """
        if self.log.closed:
            return
        left = self.settings.rounds - self.offset
        if left > 0:
            self.start(grid, ArrayRecord(), num_rounds=left, timeout=self.settings.patience)
        else:  # the server was stopped between the last round and its closing
            self._meet(grid, self.offset + 1)
            replies = grid.send_and_receive(
                self._messages(self.offset + 1, closing=True), timeout=self.settings.patience
            )
            self._close(replies)

    def summary(self) -> None:
        """Flower asks for it; what is worth saying is said by whoever starts a run."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The tasks of a round; nodes that are new join first."""
        self._meet(grid, self.offset + server_round)
        return self._messages(self.offset + server_round, closing=False)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the answers, make teachers of them, and record both before the next round."""
        round_ = self.offset + server_round
        answers = self._take(round_, replies)
        report = Report(round_ - 1, self.log.gains(round_ - 1))
        self.strategy.hear(report)
        fused = self._fuse(answers, round_)
        self.told = fused.told
        self.log.fused(round_, fused)
        self.log.keep(Standing(round_, dict(self.told), self.strategy.state()), chosen=self.strategy.chosen())
        self._show(round_ - 1)
        return None, MetricRecord({"answers": len(answers)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing, but after the last round what closes it."""
        round_ = self.offset + server_round
        return self._messages(round_ + 1, closing=True) if round_ == self.settings.rounds else []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The figures of the last round."""
        if self.offset + server_round == self.settings.rounds:
            self._close(replies)
        return None

    def _close(self, replies: Iterable[Message]) -> None:
        round_ = self.settings.rounds
        self._take(round_ + 1, replies)
        self.strategy.hear(Report(round_, self.log.gains(round_)))
        self.log.close(round_, chosen=self.strategy.chosen())
        self._show(round_)

    def _meet(self, grid: Grid, round_: int) -> None:
        """Let nodes join; there must be some, and of one architecture where the strategy wants that."""
        first = not self.members.by_node
        notes = self.members.meet(grid, wait=self.settings.gather if first else 0.0, say=self.say)
        here = self.members.present
        if first and len(here) < self.settings.clients:
            notes.append(f"{len(here)} of {self.settings.clients} clients are there")
            self.say(notes[-1])
        self.log.met(round_, here, notes)
        if len(here) < min(2, self.quorum):
            turned = "; ".join(self.members.turned_away.values())
            raise InputError(
                f"{len(here)} client(s) after {self.settings.gather:g} s{f'; {turned}' if turned else ''}",
                f"{self.settings.clients} clients, at least {self.quorum} of them",
                "start the missing nodes, and go on with --resume",
            )
        if self.strategy.one_architecture and len({one.architecture for one in here}) > 1:
            raise InputError(
                f"strategy {self.settings.strategy!r} with networks {', '.join(sorted({one.model for one in here}))}",
                "one architecture for all, whose weights have a mean",
                "give one --models, or choose a strategy that sends predictions",
            )

    @property
    def quorum(self) -> int:
        """Fewest answers to fuse."""
        return self.settings.fusion.quorum or max(2, self.settings.clients // 2)

    def _messages(self, round_: int, *, closing: bool) -> list[Message]:
        self.asked, self.closing = {}, closing
        messages = []
        present = {member.client for member in self.members.present}
        for client in sorted(self.log.clients.keys() - present):
            self.log.missing(round_, client, status="absent", why="not connected")
        for member in self.members.present:
            told = self.told.get(member.client) or self._common(member)
            task = Task(
                round=round_,
                temperature=told.temperature or self.settings.fusion.temperature,
                wants=frozenset() if closing else frozenset(self.strategy.wants),
                teacher=told.teacher,
                weights=dict(told.weights) if told.weights is not None else None,
                closing=closing,
                # A test is of the round before; before the first one there is nothing to test.
                test=closing or (round_ > 1 and (round_ - 1) % self.settings.eval_every == 0),
            )
            records = pack_task(task, self.settings, self.log.run)
            self.asked[member.node] = (member, size_of(records))
            kind = "evaluate" if closing else "train"
            messages.append(Message(records, dst_node_id=member.node, message_type=kind, group_id=str(round_)))
        return messages

    def _common(self, member: Member) -> Told:
        """What a client is told that missed the round before: nothing, unless all of its kind are told the same."""
        twins = [one.client for one in self.members.present if one.architecture == member.architecture]
        told = [self.told[client] for client in twins if client in self.told]
        return told[0] if self.strategy.common and told else Told()

    def _take(self, round_: int, replies: Iterable[Message]) -> list[Answer]:
        """The answers that hold what was asked for, ordered by client; all others are recorded with the reason."""
        answers, unreachable = [], 0
        open_ = dict(self.asked)
        for reply in replies:
            if reply.metadata.src_node_id not in open_:
                unreachable += reply.has_error()  # Flower answers itself for a node that is gone
                continue
            member, sent = open_.pop(reply.metadata.src_node_id)
            facts = facts_of(reply)
            if FAILED in facts:
                status = "absent" if reply.has_error() else "failed"
                self.log.missing(round_, member.client, status=status, why=facts[FAILED])
                continue
            try:
                self._note(round_, member, reply.content, sent)
                answers.append(self._answer(member, reply.content))
            except Refused as refused:
                self.log.missing(round_, member.client, status="refused", why=str(refused))
        late = f"no answer within {self.settings.patience:g} s"
        for member, _ in open_.values():
            why = "its node is gone" if unreachable >= len(open_) else late
            self.log.missing(round_, member.client, status="absent", why=why)
        if not answers and self.asked:
            reasons = "; ".join(self.log.reasons(round_)) or "no client was asked"
            raise InputError(
                f"round {round_}, in which no client gave an answer that can be used ({reasons[:500]})",
                "an answer at least",
                "see what the clients say, and go on with --resume",
            )
        return sorted(answers, key=lambda one: one.client)

    def _note(self, round_: int, member: Member, records: RecordDict, sent: int) -> None:
        """Record what a client reports of the round before, and what this exchange took.

        Raises:
            Refused: it answers in the name of another client, or of none.
        """
        client, notes, figures = read_reply(records)
        if client != member.client:
            raise Refused(f"an answer in the name of client {client}")
        self.log.answered(round_, member, figures, notes=notes, bytes_up=size_of(records), bytes_down=sent)

    def _answer(self, member: Member, records: RecordDict) -> Answer:
        """What a client sent, checked.

        Raises:
            Refused: it is not what was asked for.
        """
        # A client with next to no images has nothing to say, and nobody is surprised.
        wants = frozenset() if self.closing or member.num_train < FEWEST else self.strategy.wants
        sizes = {"num_samples": member.num_transfer, "num_classes": len(member.class_names)}
        knowledge = weights = counts = None
        if "knowledge" in wants:
            knowledge = unpack_knowledge(records, **sizes)
            if "selection" not in wants and not knowledge.rows.all():
                raise Refused("answers to some of the images only")
        if "weights" in wants:
            weights = unpack_weights(records, self.shapes.get(member.architecture, {}))
            self.shapes.setdefault(member.architecture, shapes_of(weights))
        if "histogram" in wants:
            counts = unpack_histogram(records, sizes["num_classes"])
        return Answer(member.client, member.architecture, member.num_train, knowledge, weights, counts)

    def _fuse(self, answers: list[Answer], round_: int) -> Fused:
        """What all are told; nothing where too few answered."""
        if not self.strategy.wants:
            return self.strategy.fuse(answers, round_)
        fresh = [one for one in answers if one.knowledge is not None or one.weights is not None]
        usable = self._with_stale(fresh)
        self.answered = {one.client: one for one in fresh}
        if len(usable) < self.quorum:
            note = f"{len(usable)} usable answer(s), {self.quorum} needed: nothing was fused"
            self.say(f"round {round_}: {note}")
            return Fused({}, notes=(note,))
        return self.strategy.fuse(usable, round_)

    def _with_stale(self, usable: list[Answer]) -> list[Answer]:
        """Answers of the round before for those that are missing, where that is allowed."""
        if not self.settings.fusion.stale:
            return usable
        here = {one.client for one in usable}
        old = [one for client, one in self.answered.items() if client not in here]
        return sorted([*usable, *old], key=lambda one: one.client)

    def _show(self, round_: int) -> None:
        """A line on a round, once its figures are there."""
        line = self.log.line(round_)
        if line is not None:
            done = max(round_ - self.offset, 1)
            left = (self.settings.rounds - round_) * (time.monotonic() - self.begun) / done
            self.say(f"{line}{f'; about {left:.0f} s left' if left > 1 else ''}")
