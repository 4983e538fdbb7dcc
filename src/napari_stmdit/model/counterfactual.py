"""Edit real tissue: abduction, action, prediction (Pearl; for images Pawlowski et al., 2020, arXiv 2006.06485).

Abduction takes the latents of a real crop to their noise along the probability-flow ODE, unguided and under the measured conditions
(DDIM inversion: Song et al., 2021, arXiv 2010.02502), and keeps the path. Prediction takes the noise back under edited conditions.
It integrates the *change* d against that path,

    d' = f(y + d, c) + w (f(y + d, c') - f(y + d, c)) - f(y, c),     d = 0 at the noise,

the same ODE minus the path of the real crop. Unchanged conditions therefore give no change at all, with any solver, number of steps and w;
no round trip has to be exact. Both directions use the same second-order method with one call of the network a step.

    abduction = finish(abduct(transformer, scheduler, latents, conditions))
    change = finish(predict(transformer, abduction, edited))            # latents, exactly 0 where no condition differs
    images = edited_pixels(vae, crops, latents, change)                 # real pixels + decoded difference
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, NotFiniteError, SynthesisError
from ..progress import Batches
from .autoencoder import decode_images, is_tiny
from .guidance import branches
from .inference import ConditionTensors, Prediction, on_device, prediction
from .sampling import check_scheduler

# The probability-flow ODE of a checkpoint: its nodes between data and noise, and the slope that a prediction gives there.
#
# With x = a x0 + s noise, the input of a transformer, the ODE dy/dtau = f has no linear term of its own in these coordinates (Song et al., 2021,
# arXiv 2011.13456; Karras et al., 2022, arXiv 2206.00364):
#
# - flow, a = 1 - s: y = x, tau = s, f the predicted velocity
# - noise or v prediction, a^2 + s^2 = 1: y = x / a, tau = s / a, f the predicted noise (v = a noise - s x0)
#
# In both, y - tau f is what the clean latents are predicted to be.

MAX_RATIO = 1000.0
"""Maximum noise-to-signal ratio of a schedule: beyond it float32 loses the data."""
DENSITY = 1.25
"""Exponent that moves the nodes of a flow towards the noise, where large edits turn most; see docs/evidence/inversion.md."""
_FLOW, _NOISE, _VELOCITY = "flow_prediction", "epsilon", "v_prediction"


@dataclass(frozen=True)
class OdePath:
    """Nodes from data (0) to noise (steps).

    Attributes
    ----------
    kind
        ``flow_prediction``, ``epsilon`` or ``v_prediction``.
    timesteps
        (steps + 1,) float32, as the transformer takes them.
    tau, signal, noise
        The coordinate, a and s of each node.
    """

    kind: str
    timesteps: Tensor
    tau: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps between the nodes."""
        return len(self.tau) - 1

    def latents(self, node: int, state: Tensor) -> Tensor:
        """Return x, the transformer's input, of a state y."""
        return state if self.kind == _FLOW else state * self.signal[node]

    def state(self, node: int, latents: Tensor) -> Tensor:
        """Return the state y of latents x."""
        return latents if self.kind == _FLOW else latents / self.signal[node]

    def slope(self, node: int, latents: Tensor, predicted: Tensor) -> Tensor:
        """Return f = dy/dtau of a prediction made from latents x."""
        if self.kind == _VELOCITY:
            return self.signal[node] * predicted + self.noise[node] * latents
        return predicted


def prediction_kind(scheduler: Any) -> str:
    """Return what a checkpoint predicts; raises CheckpointError for any but flow, noise and v over a known noise schedule."""
    check_scheduler(scheduler)
    kind = str(scheduler.config.get("prediction_type", _FLOW))  # flow schedulers know only one and do not name it
    if kind == _FLOW or (kind in (_NOISE, _VELOCITY) and getattr(scheduler, "alphas_cumprod", None) is not None):
        return kind
    raise CheckpointError(
        f"{type(scheduler).__name__} with prediction type {kind!r} has no probability-flow ODE that this version knows; expected "
        "flow, epsilon or v prediction"
    )


def ode_path(scheduler: Any, steps: int) -> OdePath:
    """Return the nodes of a scheduler's ODE: evenly spaced in the time of a noise schedule, for flow denser near the noise.

    Raises
    ------
    CheckpointError
        As for `prediction_kind`.
    SynthesisError
        ``steps`` are fewer than 1 or as many as the scheduler was trained with.
    """
    kind, most = prediction_kind(scheduler), int(scheduler.config.num_train_timesteps)
    if not 1 <= steps < most:
        raise SynthesisError(f"The ODE needs 1 to {most - 1} steps, got {steps}.")
    if kind == _FLOW:
        level = 1 - np.linspace(1, 0, steps + 1) ** DENSITY
        timesteps = np.maximum(level, 1 / most) * most  # a time of 0, without any noise, is never trained
        return _path(kind, timesteps, level, 1 - level, level)
    kept = scheduler.alphas_cumprod.double().numpy()
    last = int(np.flatnonzero((1 - kept) <= MAX_RATIO**2 * kept).max())  # some schedules end without signal
    timesteps = np.rint(np.linspace(0, last, steps + 1))
    signal, noise = np.sqrt(kept[timesteps.astype(int)]), np.sqrt(1 - kept[timesteps.astype(int)])
    return _path(kind, timesteps, noise / signal, signal, noise)


def _path(kind: str, timesteps: Any, tau: Any, signal: Any, noise: Any) -> OdePath:
    rows = (tuple(float(value) for value in row) for row in (tau, signal, noise))
    return OdePath(kind, torch.as_tensor(timesteps, dtype=torch.float32), *rows)


# Abduction and prediction along the path.


STEPS = 12
"""Default steps each way, one call of the network each; see docs/evidence/inversion.md."""
MAX_PREPARED = 256
"""Maximum number of items whose prepared conditions stay on the device."""

T = TypeVar("T")


@dataclass(frozen=True)
class OdeStep:
    """Progress of an integration: ``step`` of ``steps`` sweeps over all items, and the share ``part`` of the present one."""

    step: int
    steps: int
    part: float = 0.0

    @property
    def fraction(self) -> float:
        """Share of the work done, 0 to 1."""
        return min(1.0, (self.step + self.part) / self.steps) if self.steps else 1.0


Work = Generator[OdeStep, None, T]
"""Generator that yields after every network call; closing it ends the work, `napari_stmdit.progress.finish` runs it to its end."""


class Separate:
    """Independent latents: the state is (b, c, h, w), and each is an item."""

    def cut(self, state: Tensor, items: Tensor) -> Tensor:
        """Return the items (k,) of a state."""
        return state[items]

    def join(self, values: Tensor, items: Tensor, like: Tensor) -> Tensor:
        """Return a state of the values of items; 0 for the others."""
        joined = torch.zeros_like(like)
        joined[items] = values
        return joined

    def reached(self, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which items to compute where some are changed."""
        return changed


class CanvasWindows:
    """Overlapping windows of one canvas: the state is (c, H, W), and each window is an item.

    Windows are averaged at every network call (MultiDiffusion: Bar-Tal et al., 2023, arXiv 2302.08113), with the same weights both ways.

    Parameters
    ----------
    corners
        (k, 2) top left corner (y, x) of each window, in latent cells.
    weight
        (side, side) positive weight of each cell of a window.
    size
        Height H and width W of the canvas, in latent cells.

    Raises
    ------
    SynthesisError
        A window reaches beyond the canvas, or a weight is not above 0.
    """

    def __init__(self, corners: NDArray[np.int64], weight: NDArray[np.float32], size: tuple[int, int]) -> None:
        self.corners = np.asarray(corners, dtype=np.int64).reshape(-1, 2)
        self.weight = torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32))
        self.side, self.size = len(weight), (int(size[0]), int(size[1]))
        if (
            (self.corners < 0).any()
            or (self.corners + self.side > self.size).any()
            or not bool((self.weight > 0).all())
        ):
            raise SynthesisError(
                f"Windows of {self.side} cells with corners {self.corners.min(0)} to {self.corners.max(0)} (y, x) must lie on the "
                f"canvas of {self.size} cells, and their weights above 0."
            )
        self._total = torch.zeros(self.size)
        for y, x in self.corners.tolist():
            self._total[y : y + self.side, x : x + self.side] += self.weight
        self._total.clamp_(min=float(self.weight.min()))  # cells that no window covers

    def cut(self, state: Tensor, items: Tensor) -> Tensor:
        """Return windows (k, c, side, side) of a state."""
        places = self.corners[items.numpy()].tolist()
        return torch.stack([state[:, y : y + self.side, x : x + self.side] for y, x in places])

    def join(self, values: Tensor, items: Tensor, like: Tensor) -> Tensor:
        """Return the weighted mean over all windows; those not among the items count as 0."""
        joined = torch.zeros_like(like)
        for (y, x), value in zip(self.corners[items.numpy()].tolist(), values, strict=True):
            joined[:, y : y + self.side, x : x + self.side] += self.weight * value
        return joined / self._total

    def reached(self, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which windows to compute: the changed ones and those that overlap one."""
        apart = np.abs(self.corners[:, None] - self.corners[None, changed]).max(axis=2)  # (k, changed)
        return np.asarray((apart < self.side).any(axis=1))

    def covered(self, items: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the cells (H, W) of some windows."""
        found = np.zeros(self.size, dtype=bool)
        for y, x in self.corners[items].tolist():
            found[y : y + self.side, x : x + self.side] = True
        return found


Layout = Separate | CanvasWindows


@dataclass(frozen=True)
class Abduction:
    """Path of real latents to their noise: all that a prediction needs.

    Attributes
    ----------
    path, layout
        Its nodes, and where the items lie.
    conditions
        The measured ones.
    states
        (steps + 1, b, c, h, w), or (steps + 1, c, H, W) of a canvas: y at each node, data first.
    slopes
        (steps + 1, items, c, h, w): f of each item at each node.
    """

    path: OdePath
    layout: Layout
    conditions: ConditionTensors
    states: Tensor
    slopes: Tensor

    @property
    def latents(self) -> Tensor:
        """Real latents, (b, c, h, w) or (c, H, W)."""
        return self.path.latents(0, self.states[0])

    @property
    def noise(self) -> Tensor:
        """Noise of the latents, of about unit spread and the same shape."""
        return self.path.latents(self.path.steps, self.states[-1]) / self.path.noise[-1]

    def thinned(self, nodes: Sequence[int]) -> Abduction:
        """Return the same path at some of its nodes, data and noise among them: a prediction takes fewer calls, and is coarser."""
        kept, path = list(nodes), self.path
        rows = (tuple(row[node] for node in kept) for row in (path.tau, path.signal, path.noise))
        thin = OdePath(path.kind, path.timesteps[kept], *rows)
        return replace(self, path=thin, states=self.states[kept], slopes=self.slopes[kept])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return plain arrays for `restored`."""
        return {"states": self.states.numpy(), "slopes": self.slopes.numpy()}


def restored(
    scheduler: Any,
    arrays: Mapping[str, NDArray[np.float32]],
    conditions: ConditionTensors,
    layout: Layout | None = None,
) -> Abduction:
    """Return an abduction from its `Abduction.arrays`; the caller ensures that checkpoint, image and conditions are the same.

    Raises
    ------
    SynthesisError
        The arrays do not fit the conditions and the layout.
    """
    states, slopes = (
        torch.from_numpy(np.ascontiguousarray(arrays[name], dtype=np.float32)) for name in ("states", "slopes")
    )
    place = layout or Separate()
    count = _count(states[0], conditions, place)
    if tuple(slopes.shape[:2]) != (len(states), count):
        raise SynthesisError(
            f"The kept slopes are of {tuple(slopes.shape[:2])} nodes and items, expected {(len(states), count)}."
        )
    return Abduction(ode_path(scheduler, len(states) - 1), place, conditions, states, slopes)


def abduct(
    transformer: Any,
    scheduler: Any,
    latents: Tensor,
    conditions: ConditionTensors,
    *,
    layout: Layout | None = None,
    steps: int = STEPS,
    batch: int | Batches = 16,
) -> Work[Abduction]:
    """Take real latents to their noise, unguided, in steps + 1 sweeps over all items.

    Parameters
    ----------
    transformer
        `napari_stmdit.model.transformer.STMDiTTransformer2D`, on its device and in its dtype; states stay on the CPU in float32.
    scheduler
        The checkpoint's own.
    latents
        (b, c, h, w) normalised latents of real crops, each an item; or (c, H, W) of a canvas.
    conditions
        The measured ones, one for each item.
    layout
        The windows of a canvas; None: independent latents.
    steps
        From data to noise, and back.
    batch
        Items at once, halved where memory does not suffice, or shared `Batches`. Results depend on it by rounding alone.

    Raises
    ------
    CheckpointError
        The scheduler has no known ODE.
    SynthesisError
        Shapes do not fit.
    NotFiniteError
        A prediction is not finite; names the items.
    """
    layout, path = layout or Separate(), ode_path(scheduler, steps)
    data = path.state(0, latents.detach().float().cpu())
    network = _Network(transformer, path, conditions, batch)
    items = torch.arange(_count(data, conditions, layout))
    progress = _Sweeps(steps + 1)
    states: list[Tensor] = []
    slopes: list[Tensor] = []

    def slope(node: int, state: Tensor) -> Work[Tensor]:
        found = yield from network.slopes(node, layout.cut(state, items), items, progress)
        states.append(state)
        slopes.append(found)
        return layout.join(found, items, state)

    yield from _integrate(slope, range(steps + 1), path.tau, data)
    return Abduction(path, layout, conditions, torch.stack(states), torch.stack(slopes))


def predict(
    transformer: Any,
    abduction: Abduction,
    edited: ConditionTensors,
    *,
    scale: float = 1.0,
    noise: Tensor | None = None,
    batch: int | Batches = 16,
    on_estimate: Callable[[int, Tensor], None] | None = None,
) -> Work[Tensor]:
    """Take abducted noise back under edited conditions, in steps + 1 sweeps over the items that the edit reaches.

    Parameters
    ----------
    transformer, batch
        As for `abduct`.
    edited
        One for each item; an item with its measured conditions is not changed.
    scale
        w, of the difference that the conditions make. Other than 1, every sweep but the first predicts items with other conditions twice.
    noise
        Replaces the abducted noise, see `mixed_noise`; all items then change, also without an edit.
    on_estimate
        Called after each step, as (step from 1, change), with the predicted change of the clean latents; for previews.

    Returns
    -------
    Tensor
        The change of the clean latents, float32, of the shape of the real ones: exactly 0 in every item, or cell of a canvas, that the
        edit does not reach.

    Raises
    ------
    SynthesisError
        Conditions or noise do not fit the abduction.
    NotFiniteError
        A prediction is not finite; names the items.
    """
    path, layout, states = abduction.path, abduction.layout, abduction.states
    count = _count(states[0], edited, layout)
    wanted = np.ones(count, dtype=bool) if noise is not None else reached(abduction, edited)
    change = torch.zeros_like(states[0])
    if noise is not None:
        if noise.shape != change.shape:
            raise SynthesisError(f"The noise has shape {tuple(noise.shape)}, expected {tuple(change.shape)}.")
        change = path.state(path.steps, noise.float().cpu() * path.noise[-1]) - states[-1]
    elif scale == 0 or not wanted.any():
        return change
    against = _ChangeSlope(transformer, abduction, edited, scale, wanted, batch, on_path=noise is None)

    def slope(node: int, state: Tensor) -> Work[Tensor]:
        found = yield from against.slope(node, state)
        if on_estimate is not None and node < path.steps:
            on_estimate(path.steps - node, path.latents(0, state - path.tau[node] * found))
        return found

    change = yield from _integrate(slope, range(path.steps, -1, -1), path.tau, change)
    return path.latents(0, change)


def _integrate(
    slope: Callable[[int, Tensor], Work[Tensor]], nodes: Sequence[int], tau: Sequence[float], state: Tensor
) -> Work[Tensor]:
    """Integrate over nodes, one call at each: Adams-Bashforth 2 as predictor, the trapezoid of the next call as corrector.

    (Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, section III.1, for steps of unequal size.)
    """
    ahead, last, width = state, None, 0.0
    for place, node in enumerate(nodes):
        found = yield from slope(node, ahead)
        if last is not None:
            state = state + width / 2 * (last + found)
        if place + 1 < len(nodes):
            before, width = width, tau[nodes[place + 1]] - tau[node]
            drift = 0 if last is None else width / (2 * before) * (found - last)
            ahead, last = state + width * (found + drift), found
    return state


def changed_items(measured: ConditionTensors, edited: ConditionTensors) -> NDArray[np.bool_]:
    """Return which items have other conditions, (n,) bool; raises SynthesisError where they are not of equally many items."""
    count = _items(measured)
    if _items(edited) != count:
        raise SynthesisError(f"The edited conditions are for {_items(edited)} items, the measured ones for {count}.")
    found = torch.zeros(count, dtype=torch.bool)
    for name in (field.name for field in fields(measured)):
        old, new = getattr(measured, name), getattr(edited, name)
        if old is None and new is None:
            continue
        if old is None or new is None or old.shape != new.shape:
            return np.ones(count, dtype=bool)
        found |= (old != new).flatten(1).any(dim=1).cpu()
    return found.numpy()


def reached(abduction: Abduction, edited: ConditionTensors) -> NDArray[np.bool_]:
    """Return which items an edit reaches, (n,) bool: those with other conditions, and on a canvas those that overlap one."""
    return abduction.layout.reached(changed_items(abduction.conditions, edited))


def mixed_noise(abducted: Tensor, fresh: Tensor, share: float) -> Tensor:
    """Return noise of unit spread, a ``share`` (0 to 1) of its variance fresh: other tissue of the same kind."""
    if not 0 <= share <= 1:
        raise SynthesisError(f"The share of fresh noise is {share}, expected 0 to 1.")
    return float(np.sqrt(1 - share)) * abducted + float(np.sqrt(share)) * fresh


@torch.inference_mode()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Return decoded latents (b, c, h, w) as (b, 3, H, W) float32 in [-1, 1]."""
    return decode_images(vae, latents).float().clamp(-1, 1)


@torch.inference_mode()
def edited_pixels(
    vae: Any,
    real: NDArray[np.uint8],
    latents: Tensor,
    change: Tensor,
    known: Callable[[list[int]], Tensor] | None = None,
) -> NDArray[np.uint8]:
    """Return real pixels (b, H, W, 3) plus decode(latents + change) - decode(latents), both (b, c, h, w).

    The autoencoder's losses cancel, and where nothing changes the result is the image. ``known`` holds `decoded` latents of items, if kept.
    """
    result = real.copy()
    rows = torch.nonzero(change.flatten(1).any(dim=1)).flatten()
    if not len(rows):
        return result
    own = rows.numpy()
    moved = decoded_change(vae, latents[rows], change[rows], None if known is None else known(own.tolist()))
    result[own] = np.clip(np.rint(real[own] + moved), 0, 255).astype(np.uint8)
    return result


@torch.inference_mode()
def decoded_change(vae: Any, latents: Tensor, change: Tensor, before: Tensor | None = None) -> NDArray[np.float32]:
    """Return decode(latents + change) - decode(latents) in grey levels, (b, H, W, 3) float32; ``before`` is the latter, where known."""
    before = decoded(vae, latents) if before is None else before
    after = decoded(vae, latents + change)
    found: NDArray[np.float32] = ((after - before.to(after.device)) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    return found


def counterfactual_fault(
    pipeline: Any, conditions: Sequence[str] = ("expression", "morphology"), lacking: Sequence[str] = ()
) -> str | None:
    """Return why a checkpoint cannot edit real tissue, in a sentence; None where it can.

    Parameters
    ----------
    pipeline
        `napari_stmdit.model.pipeline.STMDiTPipeline`.
    conditions
        Of its card (`CheckpointCard.conditions`).
    lacking
        Names of the encoders that are missing (`Checkpoint.lacking`).
    """
    begins = "This checkpoint cannot edit real tissue"
    if pipeline.transformer.config.get("expression_dim") is None or "expression" not in conditions:
        return f"{begins}: it takes no gene expression."
    if "morphology" not in conditions:
        return f"{begins}: it takes no morphology, by which an edit moves the image."
    if pipeline.vae is None or is_tiny(pipeline.vae) or getattr(pipeline.vae, "encoder", None) is None:
        return f"{begins}: its autoencoder has no encoder, so the slide cannot be taken to latents."
    if lacking:
        return f"{begins} here: {' and '.join(lacking)} is not there."
    try:
        prediction_kind(pipeline.scheduler)
    except CheckpointError as error:
        return f"{begins}: {error}."
    return None


class _Sweeps:
    """Counter of sweeps over all items."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0

    def at(self, part: float) -> OdeStep:
        if part < 1:
            return OdeStep(self._done, self._steps, part)
        self._done += 1
        return OdeStep(self._done, self._steps)


class _Network:
    """Unguided slopes of items under their conditions, computed in batches."""

    def __init__(self, transformer: Any, path: OdePath, conditions: ConditionTensors, batch: int | Batches) -> None:
        self._batches = Batches.of(batch)
        if self._batches.size < 1:
            raise SynthesisError(f"At least one item has to be computed at once, got {batch}.")
        self._transformer, self._path, self._conditions = transformer, path, conditions
        self._device = transformer.device  # diffusers walks through all modules to find it: a tenth of a small call
        self._branches = branches(
            "nested_morphology_first",
            1.0,
            1.0,
            has_morphology=conditions.morphology is not None,
            has_expression=conditions.expression is not None,
        )
        self._prepared: dict[tuple[int, ...], Prediction] = {}

    def slopes(self, node: int, states: Tensor, items: Tensor, progress: _Sweeps) -> Work[Tensor]:
        """Return f (k, c, h, w) of the states of items (k,) at a node."""
        found: list[Tensor] = []

        def work(places: range) -> Iterator[OdeStep]:
            own = items[places.start : places.stop]
            found.append(self._slopes(node, states[places.start : places.stop], own, keep=len(items) <= MAX_PREPARED))
            yield progress.at(places.stop / len(items))

        yield from self._batches.each(range(len(items)), work, halved=self._prepared.clear)
        return torch.cat(found)

    @torch.inference_mode()
    def _slopes(self, node: int, states: Tensor, items: Tensor, *, keep: bool) -> Tensor:
        latents = on_device(self._path.latents(node, states), self._device)
        key = tuple(items.tolist())
        predicts = self._prepared.get(key)
        if predicts is None:
            times, shape = self._path.timesteps, states.shape
            plan = [self._branches] * len(times)
            predicts = prediction(self._transformer, _taken(self._conditions, items), plan, times, shape)
            if keep:
                self._prepared[key] = predicts
        slopes = self._path.slope(node, latents, predicts(node, latents)).cpu()
        finite = slopes.flatten(1).isfinite().all(dim=1)
        if not bool(finite.all()):
            raise NotFiniteError(
                "The prediction is not finite: the checkpoint overflows in this precision. Use --dtype float32 or bfloat16.",
                items[~finite].tolist(),
            )
        return slopes.clone()


class _ChangeSlope:
    """Slope of the change relative to an abducted path."""

    def __init__(
        self,
        transformer: Any,
        abduction: Abduction,
        edited: ConditionTensors,
        scale: float,
        wanted: NDArray[np.bool_],
        batch: int | Batches,
        on_path: bool,
    ) -> None:
        self._abduction, self._scale, self._on_path = abduction, scale, on_path
        self._items = torch.from_numpy(np.flatnonzero(wanted))
        differs = changed_items(abduction.conditions, edited)[wanted] & (scale != 1)
        self._differing = torch.from_numpy(np.flatnonzero(differs))  # elsewhere both predictions are one
        self._edited = _Network(transformer, abduction.path, edited, batch)
        self._measured = _Network(transformer, abduction.path, abduction.conditions, batch)
        nodes, twice = abduction.path.steps + 1, bool(differs.any())
        self._progress = _Sweeps(nodes * (1 + twice) - (twice and on_path))

    def slope(self, node: int, change: Tensor) -> Work[Tensor]:
        """Return the w-weighted edited slope minus the slope of the path, joined over items."""
        layout, items, state = self._abduction.layout, self._items, self._abduction.states[node]
        progress = self._progress
        own = layout.cut(state + change, items)
        found = yield from self._edited.slopes(node, own, items, progress)
        kept = self._abduction.slopes[node, items]
        if len(differing := self._differing):
            if self._on_path and node == self._abduction.path.steps:  # nothing has changed yet
                plain = kept[differing]
            else:
                plain = yield from self._measured.slopes(node, own[differing], items[differing], progress)
            found[differing] = plain + self._scale * (found[differing] - plain)
        return layout.join(found - kept, items, state)


def _items(conditions: ConditionTensors) -> int:
    counts = {len(part) for field in fields(conditions) if (part := getattr(conditions, field.name)) is not None}
    if len(counts) != 1:
        raise SynthesisError(f"Conditions are for {sorted(counts) or 'no'} items; give one for each item.")
    return counts.pop()


def _count(state: Tensor, conditions: ConditionTensors, layout: Layout) -> int:
    """Return the number of items; raises SynthesisError where state, conditions and layout are not of equally many."""
    if isinstance(layout, CanvasWindows):
        fits, count = state.ndim == 3 and tuple(state.shape[1:]) == layout.size, len(layout.corners)
        expected = f"(c, {layout.size[0]}, {layout.size[1]}), a canvas"
    else:
        fits, count, expected = state.ndim == 4, len(state), "(items, c, h, w)"
    if not fits:
        raise SynthesisError(f"The latents have shape {tuple(state.shape)}, expected {expected}.")
    if (given := _items(conditions)) != count:
        raise SynthesisError(f"Conditions are for {given} items, but there are {count} of them.")
    return count


def _taken(conditions: ConditionTensors, items: Tensor) -> ConditionTensors:
    there = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    return replace(conditions, **{name: part[items] for name, part in there.items() if part is not None})
