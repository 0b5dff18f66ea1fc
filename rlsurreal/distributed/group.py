"""The ranks that torchrun started, as a process group under watch.

    torchrun's agent --- starts ---> rank 0 ... rank N-1       (each: join() -> Ranks, used by all that learns)
         |                              |
         +-- store (TCP) <--------------+   signs of life and last words: see `rlsurreal.distributed.watch`

    loop               consumes             produces           waits for              is unblocked by
    `_wait`            -                    -                  the other ranks        their arrival; a failure that the
                                                               in a collective        watch has found; the time limit

Collectives between CPU tensors run in Gloo, sums over the ranks of one machine in memory that these share
(`rlsurreal.distributed.reduction`), collectives between CUDA tensors in NCCL.  A rank that waits looks up every second,
so that a failure anywhere is an exception here, with the failed rank's own traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import inspect
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rlsurreal.distributed.ranks import ALONE, Operation, Ranks
from rlsurreal.distributed.reduction import SharedReduction, share_memory
from rlsurreal.distributed.watch import PATIENCE, RankError, RankWatch

_log = logging.getLogger("rlsurreal")
_LOOK_S = 1.0
_NOTICE_S = 10.0  # without the others at the start, until it is said
_GREET_S = 0.05
_END_S = 5.0  # for a process to end after its process group has broken
_MARGIN_S = 60.0  # by which the watch, which can say more, is ahead of PyTorch's own limits


@dataclass(frozen=True)
class GroupRanks(Ranks):
    """One rank of a process group."""

    watch: Any = None  # RankWatch
    shared: SharedReduction | None = None  # of ranks that are all on one machine

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks.gather`."""
        own = _to_bytes(value)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.index] = len(own)
        sizes = self.sum(sizes)
        longest = int(sizes.max())
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        found = [padded.new_empty(longest) for _ in range(self.count)] if self.is_first else None
        self._wait(lambda: dist.gather(padded, found, dst=0, async_op=True), padded, *(found or []))
        return [_from_bytes(each[:size]) for each, size in zip(found or [], sizes.tolist())]

    def scatter(self, values: Sequence[Any]) -> Any:
        """See `Ranks.scatter`."""
        every = [_to_bytes(value) for value in values] if self.is_first else []
        sizes = torch.tensor([len(each) for each in every] or [0] * self.count)
        sizes = self.sum(sizes)
        longest = int(sizes.max())
        padded = [torch.cat([each, each.new_zeros(longest - len(each))]) for each in every] or None
        own = torch.empty(longest, dtype=torch.uint8)
        self._wait(lambda: dist.scatter(own, padded, src=0, async_op=True), own, *(padded or []))
        return _from_bytes(own[: int(sizes[self.index])])

    def share(self, value: Any = None) -> Any:
        """See `Ranks.share`."""
        data = _to_bytes(value) if self.is_first else torch.empty(0, dtype=torch.uint8)
        size = int(self.sum(torch.tensor(len(data))))
        data = data if self.is_first else torch.empty(size, dtype=torch.uint8)
        self._wait(lambda: dist.broadcast(data, src=0, async_op=True), data)
        return _from_bytes(data)

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """See `Ranks.busy`."""
        return self.watch.busy()  # type: ignore[no-any-return]

    def average_gradients(self, module: nn.Module) -> nn.Module | None:
        """DistributedDataParallel (Li et al. 2020, arXiv 2006.15704): averages while the backward pass goes on.

        None where ranks share memory, in which the flat gradient is added up in less time.
        """
        if self.shared is not None and next(module.parameters()).device.type == "cpu":
            return None
        wrap = nn.parallel.DistributedDataParallel
        # Statistics in buffers are summed over ranks by those who keep them.  (PyTorch has renamed the option.)
        renamed = "forward_sync_buffers" in inspect.signature(wrap).parameters
        options: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        # Static: which parameters a loss touches is found out once, not in every step.
        return wrap(module, static_graph=True, **options)

    def _reduce(self, tensor: Tensor, operation: Operation) -> Tensor:
        if self.shared is not None and tensor.device.type == "cpu":
            with self.waiting():
                self.watch.check()
                self.shared(tensor, operation, self.watch.check)
        else:
            self._wait(lambda: dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), async_op=True), tensor)
        return tensor

    def _wait(self, start: Callable[[], Any], *tensors: Tensor) -> None:
        """Start a collective of these tensors and wait for its end.

        Raises:
            RankError: a rank has failed, or is not there; says which, where, and what it said last.
        """
        if tensors[0].device.type == "cuda":
            start().wait()  # the stream waits, not this process; NCCL has a watch of its own
            return
        holders = _count_holders(tensors)
        with self.waiting():
            self.watch.check()
            work = start()
            while not work.is_completed():
                with contextlib.suppress(RuntimeError):  # the second is over; or it has failed, as will be seen below
                    work.wait(timedelta(seconds=_LOOK_S))
                if not work.is_completed():
                    self.watch.check()
            work.wait()
            del work
            # Gloo's thread lets go of the tensors a moment later.  As the last to hold one it would ask Python to free
            # it, and abort the process if Python has ended meanwhile.
            while any(now > before for now, before in zip(_count_holders(tensors), holders)):
                self.watch.check()
                time.sleep(0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """See `Ranks.waiting`."""
        with self.watch.waiting():
            try:
                yield
            except RankError:
                raise
            except RuntimeError as error:  # Gloo's, of a connection that has broken: why, the watch may know
                if "gloo" not in str(error).lower() and "connection" not in str(error).lower():
                    raise
                raise self.watch.cause(f"the connection to another rank has broken ({error})") from error


def _count_holders(tensors: Sequence[Any]) -> list[int]:
    return [tensor._use_count() for tensor in tensors]


def in_group() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def local_place() -> tuple[int, int]:
    """Number of this rank on its machine, and how many are there."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def join(timeout_s: float = 300.0, *, cuda: bool = False) -> Iterator[Ranks]:
    """Be one of the ranks that torchrun started; alone where it did not.

    An exception that leaves this context is this rank's last word: the others end with it, too, by a `RankError`.  With
    that a process ends within seconds, even if the exception is caught.

    Args:
        timeout_s: a rank that lets others wait so long fails the run; 20 times so long where it is `Ranks.busy`.
        cuda: tensors on GPUs take part.
    """
    if not in_group():
        yield ALONE
        return
    index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if cuda:
        own, found = local_place()[0], torch.cuda.device_count()
        if own >= found:
            raise ValueError(
                f"this machine has {found} GPUs for rank {own} of those on it; start as many as it has GPUs"
            )
        torch.cuda.set_device(own)
    limit = timedelta(seconds=timeout_s + _MARGIN_S)
    store, _, _ = next(iter(rendezvous("env://", index, count, timeout=limit)))
    store.set_timeout(limit)
    store = _session(store, index, count, timeout_s)
    watch = RankWatch(store.clone(), index, count, timeout_s)
    longest = timedelta(seconds=timeout_s * PATIENCE + _MARGIN_S)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=index, world_size=count, timeout=longest
    )  # when this returns, all ranks are there, with a sign of theirs
    watch.start()
    try:
        ranks = GroupRanks(index, count, watch)
        yield dataclasses.replace(ranks, shared=share_memory(ranks))
    except BaseException as error:
        try:
            watch.say_last_words(error)
        finally:
            watch.close()
        if isinstance(error, RankError):
            # Gloo's threads wait for ranks that never come, and Python's end would wait for these threads.
            faulthandler.dump_traceback_later(_END_S, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        raise
    watch.close()
    dist.destroy_process_group()


def _session(store: Any, index: int, count: int, timeout_s: float) -> Any:
    """A part of the store for these very processes.

    Agents keep one store for all attempts, in which the addresses of the dead still stand.  So the first rank opens a
    session under a name that never was, hands the name to whoever greets it, also to those long gone, and waits until
    so many as there are have come.

    Raises:
        RankError: somebody has not come in time.
    """
    own, greetings = uuid.uuid4().hex, [f"rlsurreal/hello/{i}" for i in range(count)]
    deadline, notice = time.monotonic() + timeout_s, time.monotonic() + _NOTICE_S
    if index != 0:
        store.set(greetings[index], own)
    welcomed: dict[int, bytes] = {}
    while True:
        if index != 0 and store.check([f"rlsurreal/welcome/{own}"]):
            session = store.get(f"rlsurreal/welcome/{own}").decode()
            store.add(f"{session}/arrived", 1)
            break
        if index == 0 and store.add(f"{own}/arrived", 0) == count - 1:
            session = own
            break
        for i in range(1, count) if index == 0 else ():
            if store.check([greetings[i]]) and (hello := store.get(greetings[i])) != welcomed.get(i):
                welcomed[i] = hello
                store.set(f"rlsurreal/welcome/{hello.decode()}", own)
        late = [i for i in range(1, count) if i not in welcomed] if index == 0 else [0]
        if time.monotonic() > deadline:
            raise RankError(f"rank {index} of {count} has met nobody for {timeout_s:.0f} s; not seen: {late or 'some'}")
        if time.monotonic() > notice:
            _log.warning("rank %d waits for the others to start; not seen yet: %s", index, late or "some")
            notice = time.monotonic() + 2 * _NOTICE_S
        time.sleep(_GREET_S)
    return PrefixStore(session, store)


def _to_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)


def _from_bytes(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())
