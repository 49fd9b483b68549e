"""Sparse update (TL): the large model teaches the tiny one; each device tunes the tensors that are worth their bytes.

Source: Lin, Zhu, Chen, Wang, Gan, Han, "On-device training under 256KB memory", NeurIPS 2022, section 3.2. The choice
is made on the server: of its public rows `scheme.probe` are kept out of the teaching; on half of these each tensor is
trained alone, and the fall of the loss on the other half is its contribution. Tensors are then taken by contribution
over bytes until the smallest board's SRAM, or scheme.sram_bytes of it, is full. The paper measures on the data of the
task itself, which here lie on the devices: public rows stand for them.
"""

from __future__ import annotations

from dataclasses import replace

from midhaul import rng, sparse
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_large, evaluate_personal, load_all, mean_loss, teach
from midhaul.message import Kind, Op, Replies
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server teaches, measures what each tensor contributes, and chooses; every device loads the tiny model."""
    cfg = kit.cfg
    start = rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC).at(3 << 16)
    lessons, probe = sparse.halved(kit.public, cfg.probe, start)
    tiny, large = teach(replace(kit, public=lessons), key)
    learn, test = sparse.halved(probe, 0.5, start.at(4 << 16))
    gains = sparse.contributions(
        kit.program.module,
        tiny,
        learn,
        test,
        lr=cfg.tune_lr,
        epochs=cfg.probe_epochs,
        batch=cfg.batch or max(len(learn), 1),
        key=start,
        progress=kit.progress,
    )
    board = min((group.board for group in kit.groups), key=lambda board: board.sram_bytes)
    chosen = sparse.choose(
        gains,
        kit.program.module,
        kit.program.input_shape,
        board,
        limit_bytes=min(cfg.sram_bytes or board.sram_bytes, board.sram_bytes),
        num_rows=kit.most_rows,
        momentum=cfg.momentum > 0.0,
        keeps_start=kit.config.privacy.clip > 0.0,
    )
    load_all(fleet, tiny, key)
    return Server(tiny, large, constant={"chosen": sparse.mask(chosen, kit.program.initial)})


def tuned(server: Server, kit: Kit) -> str:
    """Gives the slice that the devices train."""
    return sparse.spec(server.constant["chosen"], kit.program.initial)


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """A cohort's devices tune the chosen tensors of their own copies and keep them; nothing but a loss is sent."""
    message = kit.fit({}, train=tuned(server, kit), send="none", lr=kit.cfg.tune_lr)
    replies = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return server, mean_loss(replies) if len(replies) else {}


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests each device's tuned model; a new device first adapts the chosen tensors."""
    return evaluate_personal(server, fleet, kit, key, tune=tuned(server, kit), lr=kit.cfg.tune_lr)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device uses the model; what it trains is chosen so that it fits (`trains`)."""
    return (Work(Op.PREDICT),)


SPARSE_TRANSFER = Scheme(
    "sparse_transfer",
    "taught by the large model, the tensors worth their bytes tuned",
    "TL",
    "Lin et al. 2022",
    init,
    round,
    evaluate,
    work,
    "large to tiny",
    (),
    (Kind.WEIGHTS,),
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
    trains=tuned,
    admits=("cohort", "stragglers", "dropout"),
    engines=SIMULATED,
)
