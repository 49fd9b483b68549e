"""A fleet over single messages, for federations whose firewalls allow nothing else: a courier carries each way one
message a node and exchange, and nothing stays open between.

A node remembers nothing: what its devices remember travels with what they are asked, and comes back with the answer, so
a message that is lost or done twice changes nothing, and the server's checkpoint is that of `stacked`. LOAD needs no
message at all. Split learning is refused: a courier such as Flower's takes seconds and a process for each message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from midhaul import __version__, rng
from midhaul.errors import EngineError, MidhaulError
from midhaul.fleet import Group, Part, Populated
from midhaul.message import Message, Op, Replies, gather, join
from midhaul.plant import Engine, Plant
from midhaul.program import Population
from midhaul.runtime import hello, parcel, shadow
from midhaul.runtime.parcel import Ask, Models
from midhaul.runtime.shadow import Shadow
from midhaul.tree import Tree

Content = Mapping[str, str | bytes]
_NEVER = (Op.FORWARD, Op.BACKWARD)


class Courier(Protocol):
    """Carries messages to nodes and their answers back; a node that doesn't answer is absent."""

    def nodes(self) -> Sequence[int]: ...

    def carry(self, contents: Mapping[int, Content]) -> Mapping[int, Content]: ...


class Messages(Populated):
    """A fleet whose devices lie behind nodes that a courier reaches.

    `config` is what each node makes its part of the run from. `simulated` are the same devices here, for what only a
    test asks of them. `tell` is given a sentence about each node that fails.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        population: Population,
        courier: Courier,
        config: str,
        *,
        simulated: Engine | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.population, self.simulated, self.tell = population, simulated, tell
        self.models, self.shadow = Models.of(groups), Shadow(groups, population)
        self.holder: dict[int, int] = {}  # the node of each device
        self._courier, self._config = courier, config

    def missing(self) -> list[int]:
        """Gives the devices that no node holds."""
        return [device for device in sorted({*self.devices, *self.test_devices}) if device not in self.holder]

    def meet(self) -> None:
        """Asks the nodes that haven't been asked what they hold. Raises: EngineError for one that can't be right."""
        known = {*self.holder.values()}
        new = [node for node in self._courier.nodes() if node not in known]
        for node, said in self._carry({node: {"kind": "hello"} for node in new}).items():
            try:
                table = json.loads(str(said["hello"]))
                rows = {int(device): tuple(held) for device, held in table["rows"].items()}
                version, model = table["version"], table["model"]
            except (AttributeError, KeyError, TypeError, ValueError):
                raise EngineError(
                    f"node {node} says what can't be read; install the same midhaul on both sides"
                ) from None
            if version != __version__ or model != self.models.digest:
                raise EngineError(f"node {node} has another midhaul or another model; give both sides the same")
            if (
                not rows.keys() <= {*self.devices, *self.test_devices}
                or hello.rows_of(self.population, tuple(rows)) != rows
            ):
                raise EngineError(f"node {node} has other data than this run; give both sides the same data and seed")
            if taken := [device for device in rows if device in self.holder]:
                raise EngineError(
                    f"nodes {self.holder[taken[0]]} and {node} both claim device {taken[0]}; share them out"
                )
            self.holder |= dict.fromkeys(rows, node)

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Sends each node one message; gives the replies that came. Raises: EngineError where none did."""
        asked = list(self.devices if devices is None else devices)
        if message.op == Op.LOAD:
            self.shadow.load(message, asked)
            return self._loaded(asked)
        if message.op in _NEVER:
            raise EngineError(
                "split learning over single messages would take a process for each batch; choose a federated scheme, "
                "or let the stream carry it (transport = 'stream')"
            )
        shared, asks = parcel.pack_shared(message, key.round), dict[int, Ask]()
        contents: dict[int, Content] = {}
        for node in sorted({self.holder[d] for d in asked if d in self.holder}):
            places = [place for place, device in enumerate(asked) if self.holder.get(device) == node]
            part = message if len(places) == len(asked) else message.of_places(places)
            ask = asks[node] = Ask(part, tuple(asked[place] for place in places), key)
            memory = parcel.pack_tree(self.shadow.of(self._held(node)))
            contents[node] = {"kind": "exchange", "ask": parcel.pack_ask(ask, shared), "memory": memory}
        parts, states = [], []
        for node, said in self._carry(contents).items():
            try:
                answer = parcel.unpack_answer(bytes(said["answer"]), asks[node], self.models)  # type: ignore[arg-type]
                states.append((self._held(node), parcel.unpack_tree(bytes(said["memory"]))))  # type: ignore[arg-type]
            except (MidhaulError, KeyError, TypeError) as error:
                self.tell(f"node {node}: its answer was refused: {error}")
                continue
            if len(answer.replies):
                parts.append(answer.replies)
        self.shadow.keep(states)
        if contents and not parts:
            raise EngineError(f"round {key.round}: no node answered {message.op.name}; see why, then go on from there")
        return join(sorted(parts, key=lambda part: part.devices)) if parts else gather({})

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        raise EngineError(
            "data that drift want a stream to the devices (transport = 'stream'); set data.drift_round = 0"
        )

    def dismiss(self) -> None:
        """Tells the nodes that the run has ended."""
        self._carry({node: {"kind": "end"} for node in {*self.holder.values()}})

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: what `stacked` would give."""
        return self.shadow.whole()

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        self.shadow.restore(whole)

    def _held(self, node: int) -> list[int]:
        return sorted(device for device, holder in self.holder.items() if holder == node)

    def _carry(self, contents: Mapping[int, Content]) -> dict[int, Content]:
        told = {node: {**content, "config": self._config} for node, content in contents.items()}
        found: dict[int, Content] = {}
        for node, said in (self._courier.carry(told) if told else {}).items():
            if "error" in said:
                self.tell(f"node {node}: {said['error']!s}")
            else:
                found[node] = said
        return found

    def _loaded(self, devices: list[int]) -> Replies:
        order = sorted(devices)
        rows = [float(len(self.population.rows(device, "train"))) for device in order]
        none = torch.zeros(len(order), dtype=torch.float64)
        return Replies(tuple(order), {}, none.long(), torch.tensor(rows, dtype=torch.float64), {"rows": none})


def answer(
    built: Plant, content: Content, *, gives_rows: bool = False, tell: Callable[[str], None] = lambda line: None
) -> dict[str, str | bytes]:
    """Gives a node's answer to a message; `built` is the plant of its devices. Raises: MidhaulError."""
    engine, models = built.engine, Models.of(built.kit.groups)
    devices = tuple(sorted({*engine.devices, *engine.test_devices}))
    if content["kind"] == "hello":
        rows = hello.rows_of(engine.population, devices)  # type: ignore[union-attr]
        tell(f"the server asked which of its devices are here: {len(devices)}")
        return {"hello": json.dumps({"version": __version__, "model": models.digest, "rows": rows})}
    ask = parcel.unpack_ask(_bytes(content["ask"]), models)
    if ask.message.op == Op.READ and "what" in ask.message.settings and not gives_rows:
        raise EngineError("no example leaves this node; start it so that it gives rows, or choose another scheme")
    shadow.remind(engine, parcel.unpack_tree(_bytes(content["memory"])), devices)  # type: ignore[arg-type]
    replies = engine.exchange(ask.message, key=ask.key, devices=list(ask.devices))
    tell(f"round {ask.key.round}: {len(replies)} {ask.message.op.name}")
    done = parcel.pack_answer(parcel.sound(replies), ask.message.op, ask.key.round)
    return {"answer": done, "memory": parcel.pack_tree(shadow.told(engine))}  # type: ignore[arg-type]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise EngineError("a message's part isn't bytes; install the same midhaul on both sides")
    return value
