"""The trial engine: features of images over passes with perturbed activations, and their moments.

An engine belongs to one tower and one schedule. It computes the deterministic part of the forward pass once for an
image, lays the (pass, image) pairs of a piece of work one after the other, cuts them into micro-batches of one fixed
shape, and runs only the perturbed rest of the tower on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.mcdropout.batching import MicroBatch, automatic_size, in_threads, padded
from tessera.mcdropout.blocks import Entry
from tessera.mcdropout.device import Precision, compiles, half_precision, mask_form, send, sums_on
from tessera.mcdropout.encoder import encoder_of
from tessera.mcdropout.errors import DrawError
from tessera.mcdropout.masks import DeviceKeys, Form, Pairs
from tessera.mcdropout.moments import Moments
from tessera.mcdropout.packed import can_pack, pack_linears, using_packed
from tessera.mcdropout.perturb import DenseDraws, SparseDraws, TorchDraws, Watch, first_token_exact
from tessera.mcdropout.prefix import EntryStore, PrefixCache, Prepared
from tessera.mcdropout.recipes import Schedule
from tessera.mcdropout.sites import Perturb
from tessera.mcdropout.towers import Tower

Rows: TypeAlias = NDArray[np.int64]
DenseFeatures: TypeAlias = Callable[[Entry, Tensor | None, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EngineSettings:
    """How trials are computed.

    Attributes
    ----------
    micro_batch
        Pairs that go through the tower at once.
    rng
        ``philox``: masks keyed by (seed, trial, pass, site, image). ``torch``: torch's global stream, drawn call for
        call as the original does; batches are then not padded, and a trial cannot be cut.
    form
        Form of the keyed masks; the forms draw different masks, so results name the form.
    shared_masks
        One mask for all images of a pass.
    precision
        Of the forward pass; the projection and the sums are kept in full precision.
    sums
        Of the moments.
    compile
        Compile the perturbed part and, on CUDA, replay it as a graph. ``auto``: on CUDA.
    packed
        On CPU in float32, keep a second copy of the weights as oneDNN wants them, for speed.
    threads
        Micro-batches computed at once on CPU. Let torch itself use one thread (`torch.set_num_threads`): some of its
        operations change their last bits with its number of threads, and these do not.
    cache_bytes
        How much of the deterministic parts is kept.
    """

    micro_batch: int | Literal["auto"] = "auto"
    rng: Literal["philox", "torch"] = "philox"
    form: Form | Literal["auto"] = "auto"
    shared_masks: bool = False
    precision: Precision = "float32"
    sums: Literal["float64", "float32"] = "float64"
    compile: bool | Literal["auto"] = "auto"
    packed: bool = True
    threads: int = 1
    cache_bytes: int = 1 << 30


@dataclass(frozen=True)
class TrialResult:
    """What passes over some images gave.

    Attributes
    ----------
    moments
        Over all passes, in host memory.
    features
        (passes, N, D) float32, if asked for.
    snapshots
        Moments after fewer passes, by their number.
    """

    moments: Moments
    features: NDArray[np.float32] | None = None
    snapshots: dict[int, Moments] = field(default_factory=dict)


class TrialEngine:
    """Runs trials of one tower under one schedule.

    Parameters
    ----------
    tower
        The encoder; it is moved to the device.
    schedule
        What is perturbed where.
    settings
        How to compute.
    device
        Where.

    Attributes
    ----------
    form
        In which form masks are drawn.
    batch
        The micro-batch; it shrinks when memory runs out.
    """

    def __init__(
        self,
        tower: Tower,
        schedule: Schedule,
        settings: EngineSettings | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.device = torch.device("cpu") if device is None else device
        self.settings = EngineSettings() if settings is None else settings
        self.schedule = schedule
        self._encoder = encoder_of(tower)
        self.tower = tower.eval().to(self.device)
        size = self.settings.micro_batch
        self.batch = MicroBatch(automatic_size(tower.sites(), self.device) if size == "auto" else size)
        self.form: Form = mask_form(self.device) if self.settings.form == "auto" else self.settings.form
        self._exact_stream = self.settings.rng == "torch"
        self._first_token_only = (
            tower.first_token_pooled and not self._exact_stream and first_token_exact(schedule, tower.depth)
        )
        self._sums = torch.float64 if self.settings.sums == "float64" else torch.float32
        self._cache = PrefixCache(self.settings.cache_bytes)
        self._stream = TorchDraws(schedule)
        self.compiled = self._compiles()
        self._dense = self._compile() if self.compiled else self._dense_features
        self.packed = self._packs()
        if self.packed:
            pack_linears(self.tower)

    def run(
        self,
        inputs: Tensor,
        images: Rows,
        *,
        seed: int,
        trial: int,
        passes: range,
        features: bool = False,
        snapshots: Sequence[int] = (),
    ) -> TrialResult:
        """Make some passes of a trial over a block of images.

        Parameters
        ----------
        inputs
            (N, …) what the tower embeds: pixels (N, 3, H, W) float32, or token numbers.
        images
            (N,) stable numbers of the images: with seed, trial and pass they determine the masks, and what is computed
            once for a block of images is kept under their numbers.
        seed, trial
            Key of the trial. With ``rng=torch`` the stream is seeded with `seed` alone, as the original's.
        passes
            Which passes of the trial; blocks of passes may be computed anywhere and merged.
        features
            Return the features of all passes, too.
        snapshots
            Numbers of passes, counted from the start of this call, after which the moments are kept as well.

        Raises
        ------
        DrawError
            A trial of the torch stream is cut, or the key of the masks is out of range.
        SiteError
            A site that is to be perturbed never fires.
        DeviceError
            Not even one image fits into the memory of the device.
        """
        with self.computing():
            prepared = self.prepare(inputs, images)
            moments = self.empty_moments(prepared)
            kept = np.empty((len(passes), *prepared.reference.shape), np.float32) if features else None
            taken: dict[int, Moments] = {}
            work = self.features_of(prepared, images, np.arange(len(images)), passes, seed=seed, trial=trial)
            for number, rows, found in work:
                moments.add(rows, found.to(moments.pre.shift.device))
                made = number - passes.start + 1
                if kept is not None:
                    kept[made - 1, rows] = found.cpu().numpy()
                if made in snapshots and rows[-1] == len(images) - 1:
                    taken[made] = moments.cpu()
            return TrialResult(moments.cpu(), kept, taken)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Set torch up for the engine's passes: around `features_of` where it is called by itself."""
        with torch.inference_mode(), using_packed(self.tower, self.packed):
            yield

    def prepare(self, inputs: Tensor, images: Rows) -> Prepared:
        """Compute the deterministic part of a block of images and their unperturbed features, or find them computed.

        Raises
        ------
        SiteError
            A site that is to be perturbed never fires.
        """
        if not len(images) or len(images) != len(inputs):
            msg = (
                f"{len(inputs)} inputs and {len(images)} image numbers are given; give one number for each of 1 or more"
            )
            raise DrawError(msg)
        known = self._cache.get(images)
        if known is None:
            with self.computing():
                known = self._prepared(inputs, len(images))
            self._cache.put(images, known)
        return known

    def _prepared(self, inputs: Tensor, count: int) -> Prepared:
        watch, store, references, start = Watch(), EntryStore(count), [], 0
        whole = self._encoder.pooled(inputs)
        pooled = None if whole is None else send(whole, self.device)
        while start < count:
            rows = np.arange(start, min(start + self.batch.size, count))
            filled = torch.from_numpy(self._filled(rows))
            try:
                with half_precision(self.device, self.settings.precision):
                    entry = self._enter(send(inputs[filled], self.device), watch)
                    part = None if pooled is None else pooled[send(filled, self.device)]
                    found = self._suffix(entry, part, watch).float()
                store.add(entry, len(rows))
            except torch.OutOfMemoryError as error:
                self._shrink(error)
                continue
            references.append(found[: len(rows)])
            start += len(rows)
        watch.check(self.schedule)
        return Prepared(store.whole(), pooled, torch.cat(references))

    def empty_moments(self, prepared: Prepared) -> Moments:
        """Return moments of no passes; those of the torch stream are not shifted, as the original's are not."""
        reference = prepared.reference.to(sums_on(self.device, self._sums)).to(self._sums)
        return Moments.empty(reference, shifted=not self._exact_stream)

    def features_of(
        self, prepared: Prepared, images: Rows, rows: Rows, passes: range, *, seed: int, trial: int
    ) -> Iterator[tuple[int, Rows, Tensor]]:
        """Yield features of some of the images in some passes, pass by pass; call it in inference mode.

        Parameters
        ----------
        prepared
            Of the whole block of images.
        images
            (N,) numbers of the block's images.
        rows
            Which of them, ascending.
        passes, seed, trial
            As in `run`.

        Yields
        ------
        number, rows, features
            A pass, some of the rows, and their features (len(rows), D) float32 on the device.
        """
        if self._exact_stream:
            self._begin_stream(passes, len(rows) == len(images), seed)
        numbers, flat = np.repeat(np.asarray(passes, np.int64), len(rows)), np.tile(rows, len(passes))

        def compute(part: Rows) -> Tensor:
            filled = self._filled(part)
            pairs = Pairs(seed, trial, numbers[filled], images[flat[filled]], self.settings.shared_masks)
            return self._features(prepared, flat[filled], pairs)

        for part, found in self._computed(compute, len(flat), len(rows)):
            for number in range(numbers[part[0]], numbers[part[-1]] + 1):
                of_pass = np.flatnonzero(numbers[part] == number)
                yield number, flat[part[of_pass]], found[of_pass[0] : of_pass[-1] + 1]

    def _computed(self, compute: Callable[[Rows], Tensor], total: int, of_pass: int) -> Iterator[tuple[Rows, Tensor]]:
        """Cut `total` pairs into micro-batches and yield the features of each, in order."""
        if self.settings.threads > 1 and self.device.type == "cpu" and not self._exact_stream:
            parts = [np.arange(i, min(i + self.batch.size, total)) for i in range(0, total, self.batch.size)]
            yield from zip(parts, in_threads(compute, parts, self.settings.threads), strict=True)
            return
        start = 0
        while start < total:
            stop = min(start + self.batch.size, total)
            if self._exact_stream:  # the original's batches end with a pass
                stop = min(stop, (start // of_pass + 1) * of_pass)
            part = np.arange(start, stop)
            try:
                found = compute(part)
            except torch.OutOfMemoryError as error:
                self._shrink(error)
                continue
            yield part, found
            start = stop

    def _begin_stream(self, passes: range, whole: bool, seed: int) -> None:
        if passes.start != 0 or not whole:
            msg = "rng=torch draws a trial as one stream, and a part of it is asked for; make all passes at once"
            raise DrawError(msg)
        torch.manual_seed(seed)

    def _filled(self, rows: Rows) -> Rows:
        """Fill a batch to the fixed shape; not for the torch stream, which would draw more."""
        return rows if self._exact_stream else padded(rows, self.batch.size)

    def _enter(self, batch: Tensor, watch: Watch) -> Entry:
        first = self.schedule.first
        if first.block < 0:
            return Entry(-1, "start", batch)
        tokens = self._encoder.embed(batch, watch)
        return self.tower.enter(tokens, 0, first, first_token_only=self._first_token_only)

    def _suffix(self, entry: Entry, pooled: Tensor | None, perturb: Perturb) -> Tensor:
        """Run what follows an entry: features (B, D)."""
        if entry.block < 0:
            entry = Entry(0, "start", self._encoder.embed(entry.residual, perturb))
        tokens = self.tower.resume(entry, perturb, first_token_only=self._first_token_only)
        return self._encoder.head(tokens, pooled, perturb)

    def _features(self, prepared: Prepared, rows: Rows, pairs: Pairs) -> Tensor:
        """Return the perturbed features (B, D) float32 of a micro-batch."""
        places = send(torch.from_numpy(rows), self.device)
        state = prepared.entry.take(places)
        pooled = None if prepared.pooled is None else prepared.pooled[places]
        with half_precision(self.device, self.settings.precision):
            if self._exact_stream:
                found = self._suffix(state, pooled, self._stream)
            elif self.form == "sparse":
                found = self._suffix(state, pooled, SparseDraws(self.schedule, pairs))
            else:
                keys = DeviceKeys.of(pairs, self.device)
                found = self._dense(state, pooled, keys.trial, keys.passes, keys.images)
        return found.float()

    def _dense_features(
        self, state: Entry, pooled: Tensor | None, trial: Tensor, passes: Tensor, images: Tensor
    ) -> Tensor:
        return self._suffix(state, pooled, DenseDraws(self.schedule, DeviceKeys(trial, passes, images)))

    def _packs(self) -> bool:
        """Say whether the linear layers use packed weights."""
        if not self.settings.packed or self._exact_stream or self.compiled:
            return False
        return self.device.type == "cpu" and self.settings.precision == "float32" and can_pack()

    def _compiles(self) -> bool:
        """Say whether the perturbed part is compiled: only keyed masks drawn in the dense form are."""
        suited = self.form == "dense" and not self._exact_stream
        if self.settings.compile is True and not suited:
            msg = "compile=true needs masks in the dense form, drawn by rng=philox; use form=dense or compile=auto"
            raise DrawError(msg)
        return suited and compiles(self.device, self.settings.compile)

    def _compile(self) -> DenseFeatures:
        """Compile the perturbed part for its one shape; on CUDA it is captured as a graph and replayed."""
        cuda = self.device.type == "cuda"
        compiled = torch.compile(
            self._dense_features, fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda else None
        )

        def replay(state: Entry, pooled: Tensor | None, trial: Tensor, passes: Tensor, images: Tensor) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # The next replay writes into the same memory.
            return compiled(state, pooled, trial, passes, images).clone()

        return replay

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        if self._exact_stream:
            msg = (
                f"a batch of {self.batch.size} images does not fit into memory, and rng=torch cannot make it smaller "
                "without drawing other masks; set a smaller micro_batch"
            )
            raise DrawError(msg) from error
        self.batch.shrink(error)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
