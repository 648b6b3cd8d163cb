"""Mutation tests of the simulation: each mutant drops one rule of the product, and some seed must report a violation.

This is the only place that patches our own code. `make simulate` never runs it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection

from cart_grpc.background import clock_watcher
from cart_grpc.background.claims import LaneClaims
from cart_grpc.background.outcomes import Entry, OutcomeRecorder
from cart_grpc.background.reconciler import Reconciler
from cart_grpc.carts import checkout, lines, merge, rules
from cart_grpc.carts.calls import Change, LoadedCart
from cart_grpc.carts.checkout_calls import CheckoutChange, LoadedCheckout
from cart_grpc.carts.model import Cart, CartState, CheckoutState
from cart_grpc.commands import apply_transition, expire
from cart_grpc.commands import checkout as checkout_commands
from cart_grpc.commands import record as record_command
from cart_grpc.commands.direct import Pause, Resume
from cart_grpc.commands.mutation import Mutation
from cart_grpc.commands.record import RecordOutcome, Settlement
from cart_grpc.commands.unit_of_work import Reply, UnitOfWork
from cart_grpc.protocol import merging, transitions
from cart_grpc.protocol.reservation import Decision, Disposition, NoAnswer, Observed, PermanentFailure, Reservation
from cart_grpc.reservation_api import batches
from cart_grpc.reservation_api.api import Applied, NoAnswerError
from cart_grpc.reservation_api.batches import Result
from cart_grpc.store import batch, database_clock, settle_statements, write_queue
from cart_grpc.store.batch import BatchResult
from cart_grpc.store.batch_writer import BatchWriter
from cart_grpc.store.change_notifier import Room
from cart_grpc.store.clock_queries import ClockQueries
from cart_grpc.store.due_shards import DueShards
from cart_grpc.store.prepared import Rows
from cart_grpc.store.queries import WriteQueries
from cart_grpc.store.read import cache_validator, cart_json
from cart_grpc.store.read.cache_validator import MAX_AGE_US, CacheValidator
from cart_grpc.store.read.cart_json import CartJson, Found
from cart_grpc.store.read.reads import Reads
from cart_grpc.store.rows import CommitMarker
from cart_grpc.store.shards import shard_index
from cart_grpc.store.spanning_queries import SpanningQueries
from cart_grpc.store.store import Store
from tests.simulation.seeds import run
from tests.simulation.template import template

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]
MAX_SEEDS = 120
real_hold, real_release, real_record = transitions.hold, transitions.release, transitions.record_outcome
real_claim = transitions.claim


def late_decision_overwrites_a_newer_one(patch: Patch) -> None:
    def merge_decision(row: Reservation, decision: Decision) -> Reservation:
        seen = max(row.observed_revision, min(decision.revision, row.revision))
        return row._replace(
            state=decision.state,
            granted_quantity=decision.granted_quantity,
            expire_time=decision.expire_time,
            observed_revision=seen,
            reason=decision.reason,
        )

    patch.setattr(transitions, "merge_decision", merge_decision)


def quantity_changes_without_a_new_revision(patch: Patch) -> None:
    def hold(row: Reservation, quantity: int, now: int) -> Reservation:
        return row._replace(quantity=quantity, due_time=now)

    patch.setattr(lines, "hold", hold)


def release_keeps_the_revision(patch: Patch) -> None:
    def release(row: Reservation, now: int) -> Reservation:
        after = real_release(row, now)
        return after._replace(revision=row.revision, intent_revision=row.intent_revision)

    patch.setattr(lines, "release", release)


def permanent_failure_is_not_sealed(patch: Patch) -> None:
    def seal(row: Reservation, reason: str, now: int) -> Reservation:
        return row._replace(state=Observed.REJECTED, observed_revision=row.revision, seal_reason=reason)

    patch.setattr(transitions, "seal", seal)


def no_answer_to_a_release_counts_as_released(patch: Patch) -> None:
    def record_outcome(row: Reservation, epoch: int, sent: int, outcome: Any, *rest: Any) -> Reservation:
        if isinstance(outcome, NoAnswer) and row.disposition is Disposition.RELEASE and not row.observed_revision:
            outcome = Decision(row.reservation_id, row.revision, Observed.RELEASED, 0, None, "")
        return real_record(row, epoch, sent, outcome, *rest)

    patch.setattr(record_command, "record_outcome", record_outcome)


def time_out_counts_as_a_permanent_failure(patch: Patch) -> None:
    def record_outcome(row: Reservation, epoch: int, sent: int, outcome: Any, *rest: Any) -> Reservation:
        if isinstance(outcome, NoAnswer) and outcome.code == "DEADLINE_EXCEEDED":
            outcome = PermanentFailure("TIMED_OUT", "")
        return real_record(row, epoch, sent, outcome, *rest)

    patch.setattr(record_command, "record_outcome", record_outcome)


def invalid_answer_counts_as_released(patch: Patch) -> None:
    def record_outcome(row: Reservation, epoch: int, sent: int, outcome: Any, *rest: Any) -> Reservation:
        if isinstance(outcome, NoAnswer) and outcome.code == "INVALID_ANSWER":
            outcome = Decision(row.reservation_id, row.revision, Observed.RELEASED, 0, None, "")
        return real_record(row, epoch, sent, outcome, *rest)

    patch.setattr(record_command, "record_outcome", record_outcome)


def reservation_id_is_reused(patch: Patch) -> None:
    real = lines._reserve

    def reserve(item: Any, *rest: Any) -> Any:
        line = real(item, *rest)
        name = f"00000000-0000-7000-9000-{item.item_id[:12]}"
        return line._replace(
            item=line.item._replace(reservation_id=name),
            reservation=line.reservation._replace(reservation_id=name),
        )

    patch.setattr(lines, "_reserve", reserve)


def new_hold_does_not_wait_for_the_old_release(patch: Patch) -> None:
    real = lines._reserve
    patch.setattr(lines, "_reserve", lambda item, _, given: real(item, frozenset(), given))


def waiting_hold_is_never_made_due(patch: Patch) -> None:
    patch.setattr(apply_transition, "_stop_waiting", lambda *_: [])


def overtaken_claim_writes_the_bookkeeping(patch: Patch) -> None:
    def record_outcome(row: Reservation, epoch: int, *rest: Any) -> Reservation:
        return real_record(row, row.lease_epoch, *rest)

    patch.setattr(record_command, "record_outcome", record_outcome)


def claim_is_not_committed(patch: Patch) -> None:
    real = WriteQueries.claim

    def claim(self: WriteQueries, connection: Connection, *rest: Any) -> list[Reservation]:
        with connection.begin_nested() as nested:
            claimed = real(self, connection, *rest)
            nested.rollback()
        return claimed

    patch.setattr(WriteQueries, "claim", claim)


def born_claim_is_not_committed(patch: Patch) -> None:
    real = batch._claim_due

    def claim_due(unit: UnitOfWork, room: Room, now: int) -> tuple[Sequence[Reservation], bool]:
        before = dict(unit.reservations)
        claimed, others_are_due = real(unit, room, now)
        for row in claimed:
            unit.put_reservation(before[row.reservation_id])
        return claimed, others_are_due

    patch.setattr(batch, "_claim_due", claim_due)


def lost_commit_counts_as_committed(patch: Patch) -> None:
    async def was_committed(self: BatchWriter, marker: CommitMarker) -> bool:
        return True

    patch.setattr(BatchWriter, "_was_committed", was_committed)


def lost_commit_counts_as_not_committed(patch: Patch) -> None:
    async def was_committed(self: BatchWriter, marker: CommitMarker) -> bool:
        return False

    patch.setattr(BatchWriter, "_was_committed", was_committed)


def settled_answer_overwrites_a_newer_row(patch: Patch) -> None:
    patch.setattr(settle_statements, "as_claimed", lambda _: [])
    # All seeds of a process share one set of statements. It was built before.
    dialect = template().dialect
    statement = dialect.prepare_rows(settle_statements.settle(dialect), list(settle_statements.SETTLING))
    patch.setattr(template().queries, "_settle", statement)


def settled_answer_does_not_raise_the_revision_of_its_cart(patch: Patch) -> None:
    real = RecordOutcome.settle

    def settle(self: RecordOutcome, now: int) -> Settlement | None:
        settlement = real(self, now)
        return settlement and settlement._replace(is_visible=False)

    patch.setattr(RecordOutcome, "settle", settle)


def fingerprint_of_the_request_is_ignored(patch: Patch) -> None:
    real = Mutation.run

    def run_mutation(self: Mutation, unit: UnitOfWork, *rest: Any) -> bytes:
        call = self.call
        stored = unit.replies.get((call.cart.user, call.request_id))
        if stored:
            call = replace(call, fingerprint=stored.fingerprint)
        return real(replace(self, call=call), unit, *rest)

    patch.setattr(Mutation, "run", run_mutation)


def reply_is_not_stored(patch: Patch) -> None:
    def put_reply(self: UnitOfWork, key: Any, reply: Reply) -> None:
        pass

    patch.setattr(UnitOfWork, "put_reply", put_reply)


def hold_is_not_renewed(patch: Patch) -> None:
    patch.setattr(transitions, "_find_renewal_time", lambda *_: None)


def sweeper_deletes_unfinished_reservations(patch: Patch) -> None:
    def purge(self: WriteQueries, connection: Connection, replies: int, before: int, *_: int) -> int:
        connection.exec_driver_sql("DELETE FROM reservations WHERE create_time < ? AND disposition = 3", (before,))
        return 0

    patch.setattr(WriteQueries, "purge", purge)


def expiry_leaves_the_items_in_the_cart(patch: Patch) -> None:
    real = rules.expire_cart

    def expire_cart(contents: LoadedCart, now: int) -> Change | None:
        change = real(contents, now)
        cart: Cart | None = contents.cart
        if change is None or cart is None:
            return None
        return Change(cart._replace(state=CartState.EXPIRED, revision=cart.revision + 1))

    patch.setattr(expire, "expire_cart", expire_cart)


def decrease_keeps_the_reserved_cap(patch: Patch) -> None:
    def hold(row: Reservation, quantity: int, now: int) -> Reservation:
        return real_hold(row, quantity, now)._replace(reserved_cap=row.reserved_cap)

    patch.setattr(lines, "hold", hold)


def answer_settles_the_latest_revision(patch: Patch) -> None:
    real = transitions.merge_decision

    def merge_decision(row: Reservation, decision: Decision) -> Reservation:
        return real(row, replace(decision, revision=row.revision))

    patch.setattr(transitions, "merge_decision", merge_decision)


def cart_with_a_claimable_row_is_cached(patch: Patch) -> None:
    real = cart_json._parse_cart

    def parse_cart(text: str, now: int) -> Found:
        found = real(text, now)
        if not isinstance(found, CartJson):
            return found
        return found._replace(validator=CacheValidator(found.version, now, now + MAX_AGE_US))

    patch.setattr(cart_json, "_parse_cart", parse_cart)


def step_back_of_the_clock_is_not_noticed(patch: Patch) -> None:
    patch.setattr(clock_watcher, "find_set_back", lambda *_: None)


def step_back_of_the_clock_is_not_noticed_after_a_restart(patch: Patch) -> None:
    patch.setattr(database_clock, "find_set_back_since_commit", lambda *_: None)


def times_do_not_move_with_the_clock(patch: Patch) -> None:
    patch.setattr(ClockQueries, "move", lambda *_: None)


def hold_is_believed_to_last_longer_than_its_ttl(patch: Patch) -> None:
    patch.setattr(record_command, "limit_hold", lambda outcome, *_: outcome)


def cached_reply_outlives_a_step_back_of_the_clock(patch: Patch) -> None:
    real = cache_validator.reply_validator

    def reply_validator(version: str, first_until: int | None, now: int) -> CacheValidator | None:
        validator = real(version, first_until, now)
        return validator and validator._replace(since=0)

    patch.setattr(Reads, "begin_era", lambda _: None)
    patch.setattr(cart_json, "reply_validator", reply_validator)


def born_claim_keeps_the_epoch(patch: Patch) -> None:
    patch.setattr(batch, "claim", lambda row, *times: real_claim(row, *times)._replace(lease_epoch=row.lease_epoch))


def born_claim_has_no_lease(patch: Patch) -> None:
    def claim(row: Reservation, now: int, until: int) -> Reservation:
        return real_claim(row, now, until)._replace(lease_expire_time=None, due_time=now)

    patch.setattr(batch, "claim", claim)


def born_claims_ignore_a_pause(patch: Patch) -> None:
    real = WriteQueries.load

    def load(self: WriteQueries, *rest: Any) -> Any:
        found, _ = real(self, *rest)
        return found, False

    patch.setattr(WriteQueries, "load", load)


def born_claim_is_handed_over_before_its_commit(patch: Patch) -> None:
    real = BatchWriter._run_in_transaction

    def run_in_transaction(self: BatchWriter, *rest: Any) -> BatchResult:
        result = real(self, *rest)
        self._notifier.publish((), claimed=result.claimed, due=False)
        return result

    patch.setattr(BatchWriter, "_run_in_transaction", run_in_transaction)


def born_claim_is_not_handed_over(patch: Patch) -> None:
    patch.setattr(Reconciler, "take", lambda *_: None)


def room_of_a_batch_is_given_twice(patch: Patch) -> None:
    patch.setattr(LaneClaims, "reserving", lambda *_: nullcontext())


def release_is_settled_without_its_waiting_holds(patch: Patch) -> None:
    real = RecordOutcome.settle

    def settle(self: RecordOutcome, now: int) -> Settlement | None:
        offer = real(self, now)
        if offer is None and isinstance(self.outcome, Decision) and self.claimed.disposition is Disposition.RELEASE:
            return Settlement(self._record(self.claimed, now), True)
        return offer

    patch.setattr(RecordOutcome, "settle", settle)


def results_of_a_batch_are_mixed_up(patch: Patch) -> None:
    real = batches._Batch.read

    def read(self: Any, results: Iterable[Result]) -> list[Applied]:
        applied = real(self, results)
        outcomes = reversed([one.outcome for one in applied])
        return [Applied(one.position, outcome) for one, outcome in zip(applied, outcomes, strict=True)]

    patch.setattr(batches._Batch, "read", read)


def missing_result_counts_as_a_permanent_failure(patch: Patch) -> None:
    real = OutcomeRecorder._to_record

    def to_record(self: OutcomeRecorder, entry: Entry, outcome: Any) -> RecordOutcome:
        if isinstance(outcome, NoAnswerError) and "without a result" in outcome.message:
            outcome = PermanentFailure("NO_RESULT", "")
        return real(self, entry, outcome)

    patch.setattr(OutcomeRecorder, "_to_record", to_record)


def checkout_does_not_wait_for_its_holds(patch: Patch) -> None:
    patch.setattr(checkout, "_all_outlast", lambda *_: True)
    patch.setattr(checkout, "_check_can_complete", lambda *_: None)


def sale_is_thawed_at_the_end_of_its_window(patch: Patch) -> None:
    real = checkout.evaluate

    def evaluate(loaded: LoadedCheckout, now: int) -> CheckoutChange | None:
        change = real(loaded, now)
        if change is None and loaded.checkout.state is CheckoutState.COMPLETING:
            ended = loaded.checkout._replace(state=CheckoutState.EXPIRED)
            return CheckoutChange(ended, loaded.lines)
        return change

    patch.setattr(checkout_commands, "evaluate", evaluate)


def checkout_is_completed_without_an_answer(patch: Patch) -> None:
    def evaluate(loaded: LoadedCheckout, now: int) -> CheckoutChange:
        return CheckoutChange(loaded.checkout._replace(state=CheckoutState.COMPLETED), loaded.lines)

    patch.setattr(checkout, "_evaluate_completing", evaluate)


def window_never_ends(patch: Patch) -> None:
    patch.setattr(checkout, "_evaluate_open", lambda *_: None)


def thaw_leaves_holds_in_the_checkout(patch: Patch) -> None:
    patch.setattr(checkout, "_give_back", lambda row, *_: row)


def frozen_cart_accepts_changes(patch: Patch) -> None:
    real = rules._get_open_cart

    def get_open_cart(loaded: LoadedCart, *rest: Any) -> Cart:
        if loaded.cart and loaded.cart.state is CartState.CHECKING_OUT:
            loaded = loaded._replace(cart=loaded.cart._replace(state=CartState.ACTIVE))
        return real(loaded, *rest)

    patch.setattr(rules, "_get_open_cart", get_open_cart)


def second_checkout_begins(patch: Patch) -> None:
    real = checkout.begin_checkout

    def begin_checkout(loaded: LoadedCart, *rest: Any) -> CheckoutChange:
        cart = loaded.cart
        if cart and cart.state is CartState.CHECKING_OUT:
            loaded = loaded._replace(cart=cart._replace(state=CartState.ACTIVE), checkout=None)
        return real(loaded, *rest)

    patch.setattr(checkout_commands, "begin_checkout", begin_checkout)


def sale_leaves_its_items_in_the_cart(patch: Patch) -> None:
    real = checkout._sell
    patch.setattr(checkout, "_sell", lambda *sale: real(*sale)._replace(passes=False))


def superseded_hold_is_never_released(patch: Patch) -> None:
    patch.setattr(batch, "release_superseded", lambda *_: None)


def merged_items_are_reserved_again(patch: Patch) -> None:
    real = merging.move

    def move(row: Reservation, *rest: Any) -> Reservation:
        after = real(row, *rest)
        return after._replace(reservation_id=f"00000000-0000-7000-9000-{after.reservation_id[-12:]}")

    patch.setattr(merge, "move", move)


def merge_releases_nothing(patch: Patch) -> None:
    def take_over(kept: Reservation, _: int, other: Reservation, __: int, quantity: int, now: int) -> Any:
        return (kept if kept.is_closed else real_hold(kept, quantity, now)), other

    patch.setattr(merge, "take_over", take_over)


def merge_writes_only_one_shard(patch: Patch) -> None:
    real = SpanningQueries.write

    def write(self: SpanningQueries, connection: Connection, rows: Mapping[str, Rows]) -> None:
        slices = [int(row[0]) for name, of_table in rows.items() if name != "commit_markers" for row in of_table]
        kept = shard_index(min(slices, default=0), len(self._schemas))

        def is_kept(name: str, row: Sequence[Any]) -> bool:
            return name == "commit_markers" or shard_index(int(row[0]), len(self._schemas)) == kept

        part = {name: [row for row in of_table if is_kept(name, row)] for name, of_table in rows.items()}
        real(self, connection, part)

    patch.setattr(SpanningQueries, "write", write)


def merge_leaves_the_rows_that_it_moved(patch: Patch) -> None:
    patch.setattr(SpanningQueries, "delete_reservations", lambda *_: None)


def shards_without_a_hint_are_never_asked(patch: Patch) -> None:
    patch.setattr(DueShards, "poll", lambda *_, **__: None)


def callers_write_into_another_shard_than_they_read(patch: Patch) -> None:
    patch.setattr(write_queue, "shard_index", lambda slice_, count: (shard_index(slice_, count) + 1) % count)


def pause_reaches_only_the_first_shard(patch: Patch) -> None:
    async def pause(self: Store, command: Pause | Resume) -> None:
        await self._write_queue.submit_to(0, command)

    patch.setattr(Store, "pause", pause)


# Each with a seed that catches it soon. After a change of the simulation another seed may be better.
MUTANTS: dict[Mutant, int] = {
    born_claim_keeps_the_epoch: 0,
    born_claim_has_no_lease: 0,
    born_claims_ignore_a_pause: 5,
    born_claim_is_handed_over_before_its_commit: 4,
    born_claim_is_not_handed_over: 4,
    room_of_a_batch_is_given_twice: 56,
    release_is_settled_without_its_waiting_holds: 6,
    results_of_a_batch_are_mixed_up: 1,
    missing_result_counts_as_a_permanent_failure: 15,
    late_decision_overwrites_a_newer_one: 40,
    quantity_changes_without_a_new_revision: 0,
    release_keeps_the_revision: 0,
    permanent_failure_is_not_sealed: 12,
    no_answer_to_a_release_counts_as_released: 0,
    time_out_counts_as_a_permanent_failure: 2,
    invalid_answer_counts_as_released: 5,
    reservation_id_is_reused: 0,
    new_hold_does_not_wait_for_the_old_release: 5,
    waiting_hold_is_never_made_due: 22,
    overtaken_claim_writes_the_bookkeeping: 0,
    claim_is_not_committed: 0,
    born_claim_is_not_committed: 0,
    lost_commit_counts_as_committed: 5,
    lost_commit_counts_as_not_committed: 9,
    settled_answer_overwrites_a_newer_row: 11,
    settled_answer_does_not_raise_the_revision_of_its_cart: 0,
    fingerprint_of_the_request_is_ignored: 0,
    reply_is_not_stored: 0,
    hold_is_not_renewed: 10,
    sweeper_deletes_unfinished_reservations: 0,
    expiry_leaves_the_items_in_the_cart: 0,
    decrease_keeps_the_reserved_cap: 0,
    answer_settles_the_latest_revision: 1,
    cart_with_a_claimable_row_is_cached: 0,
    step_back_of_the_clock_is_not_noticed: 5,
    step_back_of_the_clock_is_not_noticed_after_a_restart: 1,
    times_do_not_move_with_the_clock: 12,
    hold_is_believed_to_last_longer_than_its_ttl: 26,
    cached_reply_outlives_a_step_back_of_the_clock: 1,
    checkout_does_not_wait_for_its_holds: 4,
    sale_is_thawed_at_the_end_of_its_window: 1,
    checkout_is_completed_without_an_answer: 1,
    window_never_ends: 4,
    thaw_leaves_holds_in_the_checkout: 0,
    frozen_cart_accepts_changes: 1,
    second_checkout_begins: 1,
    sale_leaves_its_items_in_the_cart: 1,
    superseded_hold_is_never_released: 3,
    merged_items_are_reserved_again: 2,
    merge_releases_nothing: 2,
    merge_writes_only_one_shard: 18,
    merge_leaves_the_rows_that_it_moved: 11,
    shards_without_a_hint_are_never_asked: 10,
    callers_write_into_another_shard_than_they_read: 11,
    pause_reaches_only_the_first_shard: 7,
}


def catch(first: int) -> str | None:
    """The first violation that the seed `first` finds, else the seeds below MAX_SEEDS in order. None: there is none."""
    for seed in dict.fromkeys((first, *range(MAX_SEEDS))):
        report = run(seed, until_violation=True)
        if report.violations:
            return report.violations[0]
    return None


@pytest.mark.timeout(180)  # a time-out in the middle of a run would leave its transaction to the next test
@pytest.mark.parametrize(
    ("mutant", "first"),
    [
        # By day, every third one. At night, the others.
        pytest.param(mutant, first, id=mutant.__name__, marks=[pytest.mark.night] if number % 3 else [])
        for number, (mutant, first) in enumerate(MUTANTS.items())
    ],
)
def test_some_seed_catches_the_mutant(mutant: Mutant, first: int, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    assert catch(first), f"the seeds below {MAX_SEEDS} found no violation"
