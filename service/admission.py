"""How long work takes and whether there is room for it: arithmetic on measured speeds, no clock and no threads.

The unit of work is one step of one chain. How many of them an engine's thread does in a second depends on the
size of the model alone (DESIGN section 4), so one running estimate a size turns steps into seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from service.jobs import FRAME_STEPS, Busy, ChainJob, Kind, Rank, TooMuch

_GUESS = 2.0e10  # weights passed in a second by one thread, before anything is measured: 50,000 steps/s of 784x500
_MEMORY_SECONDS = 1.0  # of work, after which an observation counts half
_TRUST_SECONDS = 0.02  # of work that the first guess weighs
_OUTLIER = 8.0  # an observation counts as at most so many times slower than expected: a compiler ran, not a chain


class Speeds:
    """Chain-steps a second of one engine thread, by kind: total work over total time, both fading with time.

    It is the engine's time alone: what Python does for a request goes on beside it.
    """

    def __init__(self) -> None:
        self._seen: dict[Kind, tuple[float, float]] = {}  # (chain-steps, seconds)

    def chain_steps(self, kind: Kind) -> float:
        steps, seconds = self._seen.get(kind) or self._guess(kind)
        return steps / seconds

    def expect(self, kind: Kind, num_chain_steps: int, seconds: float) -> None:
        """Takes in what was measured before the first call, in place of the guess."""
        if num_chain_steps > 0 and seconds > 0:
            self._seen.setdefault(kind, (num_chain_steps, seconds))

    def observe(self, kind: Kind, num_chain_steps: int, seconds: float) -> None:
        """Takes in one call of the engine."""
        if num_chain_steps < 1 or seconds <= 0:
            return
        seconds = min(seconds, _OUTLIER * num_chain_steps / self.chain_steps(kind))
        old_steps, old_seconds = self._seen.get(kind) or self._guess(kind)
        fading = 0.5 ** (seconds / _MEMORY_SECONDS)
        self._seen[kind] = (fading * old_steps + num_chain_steps, fading * old_seconds + seconds)

    def _guess(self, kind: Kind) -> tuple[float, float]:
        speed = _GUESS / (kind.num_visible * kind.num_hidden)
        return speed * _TRUST_SECONDS, _TRUST_SECONDS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server is willing to take on."""

    max_queue_seconds: float = 5.0  # of work before a job that is accepted
    max_job_seconds: float = 30.0  # of work in one job, alone on an idle server
    max_frame_bytes: int = 256 * 2**20  # of frames that wait to be read, all jobs together; one job: a quarter
    max_jobs: int = 2000


class Admission:
    """The ledger of accepted work, and the decision on a new job."""

    def __init__(self, speeds: Speeds, num_threads: int, limits: Limits, oldest_share: float) -> None:
        self._speeds, self._num_threads, self._limits = speeds, num_threads, limits
        self._overtaking = 1.0 / (1.0 - oldest_share)  # the rest goes to the oldest job, whatever its size
        self._left: Counter[Rank] = Counter()  # chain-steps still to do
        self._frame_bytes = 0
        self._num_jobs = 0

    @property
    def backlog_seconds(self) -> float:
        """All accepted work at the measured speeds, shared by the threads."""
        return self._seconds(self._left)

    def alone_seconds(self, job: ChainJob) -> float:
        """How long `job` takes on an idle server."""
        return job.cost / (self._speeds.chain_steps(job.kind) * self._lanes(job))

    def ahead_seconds(self, job: ChainJob) -> float:
        """How long `job` waits if nothing that goes before it comes after it."""
        if not self._left:
            return 0.0
        size = job.rank.size
        before = self._seconds({rank: left for rank, left in self._left.items() if rank.size <= size})
        return min(self.backlog_seconds, before * self._overtaking)

    def check(self, job: ChainJob, frame_bytes: int, now: float) -> None:
        """Raises `TooMuch` if there never is room for `job`, `Busy` if there is none now."""
        alone = self.alone_seconds(job)
        self._check_size(job, alone, frame_bytes, now)
        ahead, limits = self.ahead_seconds(job), self._limits
        if ahead > limits.max_queue_seconds:
            reason = f"The queue is {ahead:.1f} s long, its limit is {limits.max_queue_seconds:g} s."
            raise Busy(reason, ahead - limits.max_queue_seconds)
        if job.deadline is not None and (late := ahead + alone - (job.deadline - now)) > 0:
            reason = f"The queue is {ahead:.1f} s long: this would end {late:.1f} s after its deadline."
            raise Busy(reason, late, "deadline")
        if self._num_jobs >= limits.max_jobs:
            raise Busy(f"{self._num_jobs} jobs are under way, which is the limit.", self.backlog_seconds)
        if self._frame_bytes + frame_bytes > limits.max_frame_bytes:
            raise Busy("The frames of other jobs fill the memory that is set aside for them.", self.backlog_seconds)

    def _check_size(self, job: ChainJob, alone: float, frame_bytes: int, now: float) -> None:
        longest, time_left = self._limits.max_job_seconds, alone
        unit = "rounds" if job.mode == "equilibrium" else "steps"
        what = f"{job.num_chains} x {job.num_steps} {unit} take about {alone:.1f} s on an idle server"
        if alone > longest:
            raise _too_much(job, f"{what}, the limit is {longest:g} s.", self._largest(job, longest))
        if job.deadline is not None:
            time_left = max(0.0, job.deadline - now)
        if alone > time_left:
            reason, change = f"{what}, the timeout is {time_left:.1f} s.", "Set a longer `timeout`"
            raise _too_much(job, reason, self._largest(job, time_left), change)
        room = self._limits.max_frame_bytes // 4
        if frame_bytes > room:
            reason = f"{job.num_frames} frames of {job.num_chains} chains need {frame_bytes >> 20} MB."
            largest = max(0, room // job.frame_bytes - 1) * job.every
            if job.mode == "equilibrium":
                largest = room * job.num_chains // (job.frame_bytes * job.num_frames)
            raise _too_much(job, reason, largest, "Choose a larger `every`")

    def _largest(self, job: ChainJob, seconds: float) -> int:
        """The most steps, or with a given number of rounds the most chains, that fit into `seconds`."""
        speed = seconds * self._speeds.chain_steps(job.kind)
        if job.mode == "equilibrium":
            fits = speed * job.num_chains / job.cost  # chains that one thread does
            return int(fits * self._num_threads) if fits >= 1 else 0
        extra = FRAME_STEPS * (1 + (job.every > 0))
        steps = speed * self._lanes(job) / job.num_chains - extra
        return max(0, int(steps / (1 + (FRAME_STEPS / job.every if job.every else 0))))

    def _lanes(self, job: ChainJob) -> int:
        return min(self._num_threads, job.num_chains)

    def _seconds(self, left: dict[Rank, int]) -> float:
        return sum(steps / self._speeds.chain_steps(rank.kind) for rank, steps in left.items()) / self._num_threads

    def add(self, rank: Rank, cost: int, frame_bytes: int) -> None:
        self._left[rank] += cost
        self._frame_bytes += frame_bytes
        self._num_jobs += 1

    def work_done(self, rank: Rank, cost: int) -> None:
        self._left[rank] -= cost

    def forget_frames(self, frame_bytes: int) -> None:
        """Nobody needs the frames of a job any more."""
        self._frame_bytes -= frame_bytes

    def remove(self, rank: Rank, cost_left: int) -> None:
        """The job is over; `cost_left` of it was not done. Its frames may still be there: `forget_frames`."""
        self._left[rank] -= cost_left
        if not self._left[rank]:
            del self._left[rank]
        self._num_jobs -= 1


def _too_much(job: ChainJob, reason: str, largest: int, change: str = "") -> TooMuch:
    """Says what to change: `change`, or the steps, or where the ladder gives their number, how many samples."""
    parameter = "n" if job.mode == "equilibrium" else "steps"
    most = f"{largest} samples at a time (`n`)" if parameter == "n" else f"{largest} steps"
    if parameter == "n" and not largest:
        advice = f"{change}: not even one sample fits." if change else "Not even one sample fits."
    else:
        advice = f"{change}, or ask for at most {most}." if change else f"Ask for at most {most}."
    return TooMuch(f"{reason} {advice}", largest, parameter)
