"""Ways to break the scheduler's policy, one at a time. The tests of the policy have to notice every one of them.

Rule: a mutant changes one place, whose text occurs once in its file; a change of the policy that touches the place
changes the mutant as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """breaks: the promise that does not hold any more, in one sentence. file: within engine/policy."""

    name: str
    breaks: str
    file: str
    old: str
    new: str


MUTANTS = (
    # --- caps ---
    Mutant(
        "total-off-by-one",
        "One lease more than the total may be out.",
        "tokens.py",
        "if len(self.leases) >= total or",
        "if len(self.leases) > total or",
    ),
    Mutant(
        "user-off-by-one",
        "A user may hold one lease more than its cap.",
        "tokens.py",
        ">= self.limits.max_workers_per_user",
        "> self.limits.max_workers_per_user",
    ),
    Mutant(
        "no-class-reserve",
        "No token is kept for each class.",
        "tokens.py",
        "keeps_one = total >= 3",
        "keeps_one = False",
    ),
    Mutant(
        "class-reserve-from-four",
        "Of three tokens, none is kept.",
        "tokens.py",
        "keeps_one = total >= 3",
        "keeps_one = total >= 4",
    ),
    Mutant(
        "interactive-above-cores-unbounded",
        "Interactive CPU leases start above the cores without a bound of their own.",
        "tokens.py",
        "has_room = bulk + interactive <= cores and not",
        "has_room = not",
    ),
    Mutant(
        "interactive-never-above-cores",
        "Interactive CPU work waits for bulk when bulk has all cores.",
        "tokens.py",
        "has_room = bulk + interactive <= cores and not",
        "has_room = bulk + interactive < cores and not",
    ),
    Mutant(
        "interactive-takes-bulks-core",
        "Interactive CPU leases may fill the cores and the one above, so that bulk's kept token is of no use.",
        "tokens.py",
        " and not (keeps_one and interactive >= cores)",
        "",
    ),
    Mutant(
        "bulk-above-cores",
        "Bulk CPU leases start above the cores beside interactive ones.",
        "tokens.py",
        "(bulk + interactive < cores or keeps_its_own)",
        "(bulk + interactive <= cores or keeps_its_own)",
    ),
    Mutant(
        "no-kept-core-for-bulk",
        "Bulk's kept token is not usable while interactive has all cores.",
        "tokens.py",
        "keeps_its_own = keeps_one and bulk == 0 and interactive <= cores",
        "keeps_its_own = False",
    ),
    Mutant(
        "kept-core-whatever-is-out",
        "After the cores have become fewer, bulk's kept token is lent on top of what is out beyond them.",
        "tokens.py",
        "keeps_one and bulk == 0 and interactive <= cores",
        "keeps_one and bulk == 0",
    ),
    Mutant(
        "target-ignored",
        "Bulk CPU leases ignore the scaled target.",
        "tokens.py",
        "bulk < self.cpu_target",
        "bulk < cores",
    ),
    # --- leases ---
    Mutant(
        "anybodys-lease",
        "A session can end another session's lease.",
        "tokens.py",
        "if lease is None or lease.session != session:",
        "if lease is None:",
    ),
    Mutant(
        "late-return-accepted",
        "A late or repeated return is answered as if a lease had ended.",
        "book.py",
        "        if lease is None:\n            return False",
        "        if lease is None:\n            return True",
    ),
    Mutant(
        "lease-counted-for-ever",
        "A lease that ends is still counted for its lane.",
        "tokens.py",
        "        self._by_lane[lease.lane] += by",
        "        self._by_lane[lease.lane] += max(by, 0)",
    ),
    Mutant(
        "own-leases-adopted",
        "A lease of this book that has ended can be adopted, and ends twice.",
        "book.py",
        ' or lease_id.startswith(f"{self._epoch}-")',
        "",
    ),
    Mutant(
        "dead-session-keeps-leases",
        "The tokens of a session that has ended stay out for ever.",
        "book.py",
        "for lease_id in sorted(self.tokens.of_session(session)):",
        "for lease_id in ():",
    ),
    # --- fair shares ---
    Mutant(
        "weight-ignored",
        "All users have the same share.",
        "fairness.py",
        "return min(cost_seconds / weight, _MOST_CHARGED)",
        "return min(cost_seconds, _MOST_CHARGED)",
    ),
    Mutant(
        "absurd-cost-charged",
        "One absurd cost makes everybody's tags too coarse to tell seconds apart.",
        "fairness.py",
        "_MOST_CHARGED = 1e9",
        '_MOST_CHARGED = float("inf")',
    ),
    Mutant(
        "no-correction",
        "Shares follow the estimates instead of what units took.",
        "fairness.py",
        "clock.finish = max(0.0, clock.finish + difference)",
        "pass",
    ),
    Mutant(
        "correction-backwards",
        "Who took longer than estimated is charged less.",
        "fairness.py",
        "clock.finish + difference",
        "clock.finish - difference",
    ),
    Mutant(
        "credit-for-idleness",
        "Who had nothing to ask takes back the time before.",
        "fairness.py",
        "            self._begin_to_wait(flow, ask.kind)\n",
        "            self._clock(flow, ask.kind)\n",
    ),
    Mutant(
        "credit-for-the-cap",
        "Who was at its cap takes back the time before.",
        "fairness.py",
        "                    self._begin_to_wait(flow, scope)\n",
        "                    pass\n",
    ),
    Mutant(
        "virtual-time-stands",
        "The lane's time does not move on, so that newcomers go before everybody.",
        "fairness.py",
        "            self._time[scope] = max(self._time[scope], start)\n            clock",
        "            clock",
    ),
    Mutant(
        "one-time-for-all-kinds",
        "Who makes many calls keeps newcomers from the cores.",
        "fairness.py",
        "self._clock(flow, scope).floor = self._time[scope]",
        "self._clock(flow, scope).floor = max(self._time.values())",
    ),
    Mutant(
        "calls-count-for-cores",
        "Who has made many calls is late for the cores.",
        "fairness.py",
        "start = flow.clocks[kind].start",
        "start = flow.clocks[ALL].start",
    ),
    Mutant(
        "kinds-know-nothing-of-each-other",
        "Where tokens are short, calls and cores are not shared by what they took.",
        "fairness.py",
        "return self._flows[turn.user].clocks[ALL].start, turn.order, turn.number",
        "return turn.start, turn.order, turn.number",
    ),
    Mutant(
        "ties-reversed",
        "Of equal turns the last to come is first.",
        "fairness.py",
        "Turn(start, flow.order, number, user)",
        "Turn(start, -flow.order, number, user)",
    ),
    Mutant(
        "last-in-first-out",
        "A user's newer asks of another size go before its older ones.",
        "fairness.py",
        "Turn(start, flow.order, number, user)",
        "Turn(start, flow.order, -number, user)",
    ),
    Mutant(
        "idle-lane-remembers",
        "What was used before a lane fell idle counts afterwards.",
        "fairness.py",
        "if not self._standing and not self._out:",
        "if self._out < 0:",
    ),
    Mutant(
        "debts-forgotten",
        "A user that leaves when it is ahead of its turn comes back without having used anything.",
        "fairness.py",
        "and all(clock.finish <= self._time[scope] for scope, clock in flow.clocks.items())",
        "and True",
    ),
    Mutant(
        "adopted-for-nothing",
        "Leases that an earlier scheduler lent are not charged.",
        "fairness.py",
        "clock.finish = clock.start + _charge(ask.cost_seconds, ask.weight)",
        "clock.finish = clock.start",
    ),
    Mutant(
        "stale-turns-count",
        "Turns that were taken long ago are found in the heap and served again.",
        "fairness.py",
        "return flow is not None and flow.turns.get(line) == turn",
        "return flow is not None and line in flow.turns",
    ),
    Mutant(
        "parked-users-served",
        "A user at its cap stays in the heaps.",
        "fairness.py",
        "            flow.turns.clear()\n",
        "            pass\n",
    ),
    Mutant(
        "swept-at-every-turn",
        "Every turn looks at all users.",
        "fairness.py",
        "if len(heap.turns) > heap.sweep_at:",
        "if heap.turns:",
    ),
    # --- memory ---
    Mutant(
        "rounded-down",
        "A unit is promised less than it needs.",
        "admission.py",
        "return -(-need_bytes // step) * step",
        "return need_bytes // step * step",
    ),
    Mutant(
        "promise-not-rounded",
        "What is promised is not what was looked for.",
        "book.py",
        "self.memory.lend(lease_id, size_class(ask.memory_bytes))",
        "self.memory.lend(lease_id, ask.memory_bytes)",
    ),
    Mutant(
        "last-byte-wasted",
        "A unit that just fits waits.",
        "admission.py",
        "self._promise(size) <= self.free_bytes",
        "self._promise(size) < self.free_bytes",
    ),
    Mutant(
        "too-large-for-ever",
        "A unit beyond the whole budget is promised more than there is.",
        "admission.py",
        "return min(size, self.limit_bytes)",
        "return size",
    ),
    Mutant(
        "memory-given-twice",
        "Memory above the budget is lent when a reservation is held.",
        "admission.py",
        "return min(self.free_bytes, self.limit_bytes",
        "return max(self.free_bytes, self.limit_bytes",
    ),
    Mutant(
        "reservation-ignored",
        "A stream of small units keeps a large one out for ever.",
        "admission.py",
        "if not self._waits_for_holder(lane):\n            return self.free_bytes",
        "if self.limit_bytes > 0:\n            return self.free_bytes",
    ),
    Mutant(
        "newcomers-not-counted",
        "What starts after a reservation takes its memory bit by bit.",
        "admission.py",
        "self._newcomers_bytes += held",
        "pass",
    ),
    Mutant(
        "newcomers-for-ever",
        "What began after one reservation counts against the next.",
        "admission.py",
        "        self.reservation = None\n        self._newcomers_bytes = 0\n",
        "        self.reservation = None\n        return\n",
    ),
    Mutant(
        "no-reservation",
        "Nothing is ever kept for a large unit.",
        "book.py",
        "if not memory.fits_when_open(size):\n            memory",
        "if size < 0:\n            memory",
    ),
    Mutant(
        "reservation-moves-on",
        "A later turn takes the reservation from the one that has it.",
        "admission.py",
        "held is None or (wanted.lane is Lane.INTERACTIVE and held.lane is Lane.BULK)",
        "held is None or held.lane is Lane.BULK",
    ),
    Mutant(
        "reservation-not-taken-over",
        "A large interactive unit waits until a bulk one has been served.",
        "admission.py",
        "held is None or (wanted.lane is Lane.INTERACTIVE and held.lane is Lane.BULK)",
        "held is None",
    ),
    Mutant(
        "interactive-waits-for-bulks-reservation",
        "What is kept for a bulk unit keeps interactive ones out.",
        "admission.py",
        "return held is not None and not (lane is Lane.INTERACTIVE and held.lane is Lane.BULK)",
        "return held is not None",
    ),
    Mutant(
        "holder-not-first",
        "The holder of the reservation waits for its turn again when its memory is there.",
        "book.py",
        "held.kind in kinds and memory.fits(held.size):",
        "held.kind in kinds and held.size < 0:",
    ),
    Mutant(
        "reservation-outlives-its-ask",
        "Memory is kept for an ask that was withdrawn.",
        "book.py",
        "        self.memory.release_reservation(key=(session, ask_id))\n",
        "",
    ),
    Mutant(
        "reservation-kept-at-the-cap",
        "Memory is kept for a user that may not be served.",
        "book.py",
        "            self.memory.release_reservation(user=user)\n",
        "",
    ),
    # --- what others take, promises that grow, closed memory ---
    Mutant(
        "others-not-counted",
        "What others have taken is lent.",
        "admission.py",
        "return self.limit_bytes - self.taken_bytes - self._held_bytes",
        "return self.limit_bytes - self._held_bytes",
    ),
    Mutant(
        "others-not-counted-beside-a-reservation",
        "What others have taken is lent to those that must leave room for the reservation.",
        "admission.py",
        "self.limit_bytes - self.taken_bytes - self._newcomers_bytes - kept",
        "self.limit_bytes - self._newcomers_bytes - kept",
    ),
    Mutant(
        "what-is-over-not-counted",
        "A lease that uses more than its promise holds no more than that.",
        "admission.py",
        "return max(self.promise, self.used)",
        "return self.promise",
    ),
    Mutant(
        "what-is-promised-not-kept",
        "What a lease has not used yet is lent to others.",
        "admission.py",
        "return max(self.promise, self.used)",
        "return self.used or self.promise",
    ),
    Mutant(
        "old-readings-stay",
        "A lease of which nothing is known any more still holds what it used.",
        "admission.py",
        "used = used_bytes.get(lease_id, 0)",
        "used = used_bytes.get(lease_id, loan.used)",
    ),
    Mutant(
        "growth-unbounded",
        "A promise grows though there is no room.",
        "admission.py",
        "grown.held - loan.held > room and not is_alone",
        "grown.held - loan.held > self.limit_bytes and not is_alone",
    ),
    Mutant(
        "growth-beyond-the-budget",
        "A promise of more than there is counts as met.",
        "admission.py",
        "if size > self.limit_bytes or (",
        "if (",
    ),
    Mutant(
        "growth-paid-twice",
        "What a lease uses beyond its promise is asked for again when the promise grows.",
        "admission.py",
        "grown.held - loan.held > room",
        "grown.promise - loan.promise > room",
    ),
    Mutant(
        "growth-into-the-reservation",
        "Who began after a reservation grows into what is kept.",
        "admission.py",
        "room = self._free_for(lane) if loan.is_new else self.free_bytes",
        "room = self.free_bytes",
    ),
    Mutant(
        "growth-waits-for-the-reservation",
        "Who ran before a reservation was made cannot grow, though it is waited for.",
        "admission.py",
        "room = self._free_for(lane) if loan.is_new else self.free_bytes",
        "room = self._free_for(lane)",
    ),
    Mutant(
        "nobody-grows-alone",
        "A unit that is alone and has begun with little cannot have the budget.",
        "admission.py",
        "is_alone = self.promised_bytes == loan.promise and not loan.is_new and not self.closed",
        "is_alone = False",
    ),
    Mutant(
        "alone-whatever-is-in-use",
        "A unit that is alone grows while memory is closed.",
        "admission.py",
        "and not loan.is_new and not self.closed",
        "and not loan.is_new",
    ),
    Mutant(
        "anybodys-claim",
        "A session can change what another session's lease is promised.",
        "book.py",
        "return lease is not None and lease.session == session",
        "return lease is not None",
    ),
    Mutant(
        "never-closed",
        "Units start though memory is closed.",
        "admission.py",
        "        if self.closed:\n            return self._alone_in_closed()\n",
        "",
    ),
    Mutant(
        "closed-for-everybody",
        "While memory is closed not even one unit runs.",
        "admission.py",
        "return -1 if self.promised_bytes else max(0, self.free_bytes)",
        "return -1",
    ),
    Mutant(
        "closed-for-needs-only",
        "Units without need start beside others while memory is closed.",
        "admission.py",
        "return -1 if self.promised_bytes else max(0, self.free_bytes)",
        "return 0 if self.promised_bytes else max(0, self.free_bytes)",
    ),
    Mutant(
        "reserved-because-closed",
        "A small unit gets the reservation because memory is closed.",
        "book.py",
        "if not memory.fits_when_open(size):\n            memory",
        "if not memory.fits(size):\n            memory",
    ),
    # --- pressure ---
    Mutant(
        "soft-mark-off-by-a-byte",
        "At the soft mark itself units still start.",
        "pressure.py",
        "return any(ceiling.available_bytes <= _margin(",
        "return any(ceiling.available_bytes < _margin(",
    ),
    Mutant(
        "one-ceiling-looked-at",
        "A ceiling counts only when all are reached.",
        "pressure.py",
        "return any(ceiling.available_bytes <= _margin(",
        "return all(ceiling.available_bytes <= _margin(",
    ),
    Mutant(
        "flutter",
        "Memory opens again at the very mark that closed it.",
        "pressure.py",
        "(REOPENED_PERCENT, REOPENED_MOST_BYTES) if self.closed",
        "(SOFT_PERCENT, SOFT_MOST_BYTES) if self.closed",
    ),
    Mutant(
        "margins-without-a-bound",
        "On a large machine many gigabytes are never used.",
        "pressure.py",
        "return min(ceiling.limit_bytes * percent // 100, most)",
        "return ceiling.limit_bytes * percent // 100",
    ),
    Mutant(
        "two-at-a-time",
        "The next lease is stopped before the one before is gone.",
        "pressure.py",
        "                return Verdict(closed=self.closed, end=self._stopping if is_overdue else None)",
        "                pass",
    ),
    Mutant(
        "never-by-force",
        "A lease whose coordinator hangs is waited for for ever.",
        "pressure.py",
        "end=self._stopping if is_overdue else None",
        "end=None",
    ),
    Mutant(
        "at-once-by-force",
        "A coordinator has no time to stop its worker itself.",
        "pressure.py",
        "is_overdue = now_seconds - self._since >= PATIENCE_SECONDS",
        "is_overdue = True",
    ),
    Mutant(
        "the-dead-are-stopped",
        "A lease whose worker is gone is stopped again.",
        "pressure.py",
        "running = [use for use in uses if use.used_bytes]",
        "running = list(uses)",
    ),
    Mutant(
        "waits-for-the-dead",
        "A worker that is gone is waited for until its lease has ended.",
        "pressure.py",
        "if any(use.lease_id == self._stopping and use.used_bytes is not None for use in uses):",
        "if any(use.lease_id == self._stopping for use in uses):",
    ),
    Mutant(
        "largest-stopped",
        "Who uses most is stopped, though another is over its promise.",
        "pressure.py",
        "(running[at].over_bytes, running[at].lane",
        "(running[at].lane",
    ),
    Mutant(
        "interactive-stopped-first",
        "Of two that are within their promises the one that somebody waits for is stopped.",
        "pressure.py",
        "running[at].lane is Lane.BULK",
        "running[at].lane is Lane.INTERACTIVE",
    ),
    Mutant(
        "promised-beyond-the-hard-mark",
        "Units are promised memory in which they are stopped.",
        "pressure.py",
        "one.available_bytes - _margin(one, HARD_PERCENT, HARD_MOST_BYTES)",
        "one.available_bytes",
    ),
    # --- lanes, promotion, limits, words ---
    Mutant(
        "bulk-first",
        "Bulk is served before who waits.",
        "book.py",
        "for lane in (Lane.INTERACTIVE, Lane.BULK):",
        "for lane in (Lane.BULK, Lane.INTERACTIVE):",
    ),
    Mutant(
        "promotion-forgets-what-is-to-come",
        "Only the asks that stand are promoted.",
        "book.py",
        "lane = Lane.INTERACTIVE if ask.user in self._promoted else ask.lane",
        "lane = ask.lane",
    ),
    Mutant(
        "promotion-forgets-what-stands",
        "Only the asks to come are promoted.",
        "book.py",
        "for key, ask, size in self._lanes[Lane.BULK].asks_of(user):",
        "for key, ask, size in ():",
    ),
    Mutant(
        "promotion-for-ever",
        "A user stays promoted after the last session that had it.",
        "book.py",
        "            self._promoted &= still\n",
        "            pass\n",
    ),
    Mutant(
        "promotion-ends-with-any-session",
        "A user's promotion ends with the first session that had it.",
        "book.py",
        "            self._promoted &= still\n",
        "            self._promoted -= borrower.users\n",
    ),
    Mutant(
        "limits-not-told-to-tokens",
        "Other limits are shown and not kept.",
        "book.py",
        "self.limits = self.tokens.limits = limits",
        "self.limits = limits",
    ),
    Mutant(
        "limits-not-told-to-memory",
        "Another memory budget is shown and not kept.",
        "book.py",
        "        self.memory.limit_bytes = limits.memory_limit_bytes\n",
        "",
    ),
    Mutant(
        "limits-park-nobody",
        "Who is beyond a lowered cap of users is served on.",
        "book.py",
        "for user in list(self.tokens.by_user):",
        "for user in ():",
    ),
    Mutant(
        "target-beyond-cores",
        "A target beyond the cores is believed.",
        "tokens.py",
        "max(1, min(self.scaled_to, cores))",
        "max(1, self.scaled_to)",
    ),
    Mutant(
        "garbage-weight",
        "A weight of zero is taken as sound.",
        "book.py",
        "and ask.weight > 0",
        "and ask.weight >= 0",
    ),
    Mutant(
        "garbage-after-the-fact",
        "A malformed cost is noticed when the lease has ended already.",
        "book.py",
        """        if not is_number(cost_seconds) or cost_seconds < 0:
            raise ValueError(f"malformed cost of lease {lease_id!r}: {cost_seconds!r}")
        lease = self.tokens.end(lease_id, session)
""",
        """        lease = self.tokens.end(lease_id, session)
        if not is_number(cost_seconds) or cost_seconds < 0:
            raise ValueError(f"malformed cost of lease {lease_id!r}: {cost_seconds!r}")
""",
    ),
    Mutant(
        "reasons-mixed-up",
        "Who waits for a reservation is told that it is its turn.",
        "book.py",
        'return "turn" if is_holder or size <= self.memory.room(lane) else "reserved"',
        'return "turn"',
    ),
)


def apply(mutant: Mutant, text: str) -> str:
    """The text of its file, mutated. Raises ValueError when the place is not there exactly once."""
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(
            f"mutant {mutant.name}: its text occurs {found} times in engine/policy/{mutant.file}, not once"
        )
    return text.replace(mutant.old, mutant.new)
