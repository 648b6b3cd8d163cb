"""All instruments, one line each. Every other room imports them from here and counts its own work.

Names follow OpenTelemetry's semantic conventions if there is one (`rpc.server.call.duration`,
`db.client.connection.count`), in Prometheus form; all others begin with `cart_`. Labels have few values: a method, a
code, a reason, a state, a lane. Never a user, a cart, a sku or a reservation.

With several workers, each process writes its values into files of PROMETHEUS_MULTIPROC_DIR, and one scrape adds them.
So a gauge says how the values of processes are combined (`multiprocess_mode`): `livesum` for parts of one whole, such
as open streams, and `livemostrecent` for what all processes see alike, such as the backlog in the database.
"""

import multiprocessing
import os
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, values

if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # By its name, not by its pid: a worker that is restarted goes on with the files of the one before, so counters do
    # not fall, and the number of files does not grow.
    values.ValueClass = values.MultiProcessValue(lambda: multiprocessing.current_process().name)  # type: ignore[no-untyped-call]
# A series of its own for each counter, for its time of creation. With workers there is none.
disable_created_metrics()  # type: ignore[no-untyped-call]

# The conventions' names of those instruments and labels that have one. OTLP uses these, Prometheus has _ for each dot.
CONVENTIONS: Final = (
    "rpc.server.call.duration", "rpc.system.name", "rpc.method", "rpc.response.status_code",
    "db.client.connection.count", "db.client.connection.max", "db.client.connection.pending_requests",
    "db.client.connection.pool.name", "db.client.connection.state",
)  # fmt: skip

# Seconds. From a fast read to the longest call with max_wait.
CALL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Seconds. The Reservation API takes 30 s and more, and reservations wait for hours while it is down.
RESERVATION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3_600, 14_400)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

# fmt: off
# Calls.
CALL_DURATION: Final = Histogram("rpc_server_call_duration_seconds", "Duration of calls and streams.", ["rpc_system_name", "rpc_method", "rpc_response_status_code"], buckets=CALL_BUCKETS)
CALLS_REFUSED: Final = Counter("cart_calls_refused_total", "Calls that were refused, by the reason in their status.", ["rpc_method", "reason"])
CALLS: Final = Gauge("cart_calls", "Calls of CartService that run, and calls that wait for a slot or in max_wait.", ["state"], multiprocess_mode="livesum")
CALLS_LIMIT: Final = Gauge("cart_calls_limit", "The most calls of CartService that may run, and that may wait.", ["state"], multiprocess_mode="livesum")
STREAMS: Final = Gauge("cart_streams", "Open streams.", ["rpc_method"], multiprocess_mode="livesum")
STREAM_MESSAGES: Final = Counter("cart_stream_messages_total", "Messages of WatchCart, by kind: state, heartbeat.", ["kind"])

# Writes.
BATCH_COMMANDS: Final = Histogram("cart_write_batch_commands", "Commands in one transaction.", buckets=BATCH_BUCKETS)
BATCH_WAIT: Final = Histogram("cart_write_batch_wait_seconds", "Time that the oldest command of a batch waited in the queue.", buckets=COMMIT_BUCKETS)
BATCH_DURATION: Final = Histogram("cart_write_batch_duration_seconds", "Duration of a batch from the begin of its transaction until it is durable, with its retries.", buckets=COMMIT_BUCKETS)
COMMIT_DURATION: Final = Histogram("cart_write_commit_duration_seconds", "Duration of COMMIT.", buckets=COMMIT_BUCKETS)
QUEUED_COMMANDS: Final = Gauge("cart_write_queue_commands", "Commands that wait for a batch, by queue: callers, background.", ["queue"], multiprocess_mode="livesum")

# The database.
CONNECTIONS: Final = Gauge("db_client_connection_count", "Connections to the database, by pool (write, read, query) and state (idle, used).", ["db_client_connection_pool_name", "db_client_connection_state"], multiprocess_mode="livesum")
CONNECTIONS_MAX: Final = Gauge("db_client_connection_max", "The most connections that a pool may open.", ["db_client_connection_pool_name"], multiprocess_mode="livesum")
CONNECTIONS_PENDING: Final = Gauge("db_client_connection_pending_requests", "Transactions and reads that wait for a connection.", ["db_client_connection_pool_name"], multiprocess_mode="livesum")
DATABASE_RETRIES: Final = Counter("cart_database_retries_total", "Transactions that were tried again, because the database was unavailable for a moment.")
AMBIGUOUS_COMMITS: Final = Counter("cart_ambiguous_commits_total", "Commits whose connection broke, by their outcome: committed, not_committed, unknown.", ["outcome"])
CLOCK_STEPS: Final = Counter("cart_database_clock_steps_total", "Steps of the database's clock, by direction: back, forward.", ["direction"])
READY: Final = Gauge("cart_ready", "Processes that are ready to serve.", multiprocess_mode="livesum")

# Reservations.
RESERVATIONS: Final = Gauge("cart_reservations", "Reservations whose last intent is not answered yet, or that are set aside, by the state of the work on them.", ["state", "disposition"], multiprocess_mode="livemostrecent")
RESERVATIONS_DUE: Final = Gauge("cart_reservations_due", "Reservations that are due and not claimed.", ["lane"], multiprocess_mode="livemostrecent")
OLDEST_DUE_AGE: Final = Gauge("cart_reservations_oldest_due_age_seconds", "Time since the oldest reservation that is not claimed became due; 0 if none is due.", ["lane"], multiprocess_mode="livemostrecent")
SAMPLE_TIME: Final = Gauge("cart_database_sample_timestamp_seconds", "When the database was last asked for its reservations and checkouts, as Unix time.", multiprocess_mode="livemostrecent")
ATTEMPTS: Final = Counter("cart_reservation_attempts_total", "Attempts at the Reservation API, by the state in the answer or the code of the failure.", ["lane", "outcome"])
ATTEMPT_DURATION: Final = Histogram("cart_reservation_attempt_duration_seconds", "Duration of attempts at the Reservation API.", ["lane"], buckets=RESERVATION_BUCKETS)
TIME_TO_RESERVED: Final = Histogram("cart_reservation_time_to_reserved_seconds", "Time from the call that added an item until its first hold was recorded.", buckets=RESERVATION_BUCKETS)
CLAIMS_IN_FLIGHT: Final = Gauge("cart_reservation_claims_in_flight", "Claimed reservations whose attempt has not ended.", ["lane"], multiprocess_mode="livesum")
LANE_CAPACITY: Final = Gauge("cart_reservation_lane_capacity", "The most claims that may be in flight.", ["lane"], multiprocess_mode="livesum")
BREAKER_OPEN: Final = Gauge("cart_reservation_breaker_open", "Processes for which the Reservation API counts as down.", multiprocess_mode="livesum")
PAUSED: Final = Gauge("cart_reservations_paused", "1 while an operator's pause stops all calls to the Reservation API.", multiprocess_mode="livemostrecent")
DUPLICATES: Final = Counter("cart_reservation_duplicates_total", "Surplus reservations that were found at a `basic` Reservation API and released.")
ALARMS: Final = Counter("cart_alarms_total", "Events that a person must look at: each has a log line that begins with ALARM.")

# Checkouts.
CHECKOUTS_ENDED: Final = Counter("cart_checkouts_ended_total", "Checkouts that reached one of the states COMPLETED, FAILED, CANCELLED, EXPIRED. FAILED may be completed again.", ["state"])
CHECKOUTS: Final = Gauge("cart_checkouts", "Checkouts that have not ended, by state: OPEN, COMPLETING, FAILED.", ["state"], multiprocess_mode="livemostrecent")
OLDEST_CHECKOUT_AGE: Final = Gauge("cart_checkouts_oldest_age_seconds", "For how long a checkout has been in the state, the longest; 0 if none is.", ["state"], multiprocess_mode="livemostrecent")

# Housekeeping, identities and the process.
HOUSEKEEPING: Final = Counter("cart_housekeeping_changes_total", "What the sweeper changed or deleted, by chore.", ["chore"])
HOUSEKEEPING_DURATION: Final = Histogram("cart_housekeeping_duration_seconds", "Duration of one round of the sweeper.", buckets=RESERVATION_BUCKETS)
CERTIFICATE_EXPIRY: Final = Gauge("cart_certificate_expiry_timestamp_seconds", "When the first certificate of a file expires, as Unix time.", ["setting"], multiprocess_mode="livemostrecent")
EVENT_LOOP_LAG: Final = Histogram("cart_event_loop_lag_seconds", "How late the event loop ran a timer.", buckets=COMMIT_BUCKETS)
BUILD_INFO: Final = Gauge("cart_build_info", "1, with the version of this release and the revision of the schema that it needs.", ["version", "schema_revision"], multiprocess_mode="livemostrecent")
