"""All events of the log, one line each: its name, its level and its meaning. Every line that our code writes has one.

Names are stable: dashboards and filters use them. Events that a person must look at are alarms: their lines begin with
ALARM and are never suppressed. docs/logging.md lists the same events.
"""

from dataclasses import dataclass
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of line. With `is_limited`, lines that repeat too often are suppressed and counted."""

    name: str
    level: int
    meaning: str
    is_alarm: bool = False
    is_limited: bool = True


def _alarm(name: str, meaning: str) -> Event:
    return Event(name, ERROR, meaning, is_alarm=True, is_limited=False)


# fmt: off
# The process.
STARTED: Final = Event("started", INFO, "The process listens and its database is open. With version, database, schema and ports.")
READY: Final = Event("ready", INFO, "The process reports SERVING: every path to the database works.")
NOT_READY: Final = Event("not_ready", WARNING, "The process reports NOT_SERVING. With the paths to the database that fail, and the cause.")
STOPPING: Final = Event("stopping", INFO, "A signal, or the end of the parent process, began the stop. With the cause.")
DRAINED: Final = Event("drained", INFO, "The servers have stopped. With the number of calls that were cut off.")
STOPPED: Final = Event("stopped", INFO, "The process has stopped everything in order.")
PARENT_GONE: Final = Event("parent_gone", WARNING, "A worker stops, because the process that started it is gone.")
WORKER_STARTED: Final = Event("worker_started", INFO, "A worker process was started.")
WORKER_ENDED: Final = Event("worker_ended", ERROR, "A worker process ended by itself. It is started again.")
WORKER_UNUSABLE: Final = Event("worker_unusable", ERROR, "A worker that was started again cannot serve. With the cause.")
SETTING_IGNORED: Final = Event("setting_ignored", WARNING, "A variable that begins with CART_ is not a setting.")
SETTING_RISKY: Final = Event("setting_risky", WARNING, "A setting is allowed but can do harm.")
FILES_SHORT: Final = Event("files_short", WARNING, "The limit of open files allows fewer connections than usual.")
CRASHED: Final = Event("crashed", ERROR, "An error that nothing handled. With the traceback.")
LINES_SUPPRESSED: Final = Event("lines_suppressed", WARNING, "Lines of one event were too many. With the event, its reason and method, and how many were not written. Its level is that of the event.")

# Calls.
CALL_REFUSED: Final = Event("call_refused", INFO, "A call was refused because of its caller or its request.")
CALL_FAILED: Final = Event("call_failed", WARNING, "A call was refused because of this service or its database.")
CALL_SLOW: Final = Event("call_slow", WARNING, "A call took longer than CART_SLOW_CALL, or the first message of a stream did.")
CALL_ENDED: Final = Event("call_ended", INFO, "An ordinary call ended. Only with CART_LOG_CALLS=all.", is_limited=False)
INTERNAL_ERROR: Final = Event("internal_error", ERROR, "A bug: the caller got INTERNAL with this error_id. With the traceback.")

# The database.
DATABASE_AWAITED: Final = Event("database_awaited", WARNING, "The process waits for its database. With the cause.")
DATABASE_FOUND: Final = Event("database_found", WARNING, "The database for which the process waited is there.")
WRITES_FAILING: Final = Event("writes_failing", WARNING, "Writes began to fail, for another cause, or still after a minute.")
WRITES_RECOVERED: Final = Event("writes_recovered", WARNING, "Writes work again. With the duration and the number of failures.")
READS_FAILING: Final = Event("reads_failing", WARNING, "Reads began to fail, for another cause, or still after a minute.")
READS_RECOVERED: Final = Event("reads_recovered", WARNING, "Reads work again.")
COMMIT_UNKNOWN: Final = Event("commit_unknown", WARNING, "A connection broke at COMMIT, and nobody knows whether the changes were made.")
DATABASE_DAMAGED: Final = Event("database_damaged", ERROR, "The database cannot read its data. Once, with the cause.")
DURABILITY_RISK: Final = Event("durability_risk", WARNING, "A setting of PostgreSQL can lose acknowledged writes.")
CONNECTIONS_SHORT: Final = Event("connections_short", WARNING, "The database grants fewer connections than wanted. With the cause.")
CONNECTIONS_GRANTED: Final = Event("connections_granted", INFO, "The database grants all connections again.")
CLOCK_SET_FORWARD: Final = Event("clock_set_forward", WARNING, "The database's clock was set forward, or the machine slept.")
CLOCK_SET_BACK: Final = Event("clock_set_back", WARNING, "The database's clock was set back. Stored times are adjusted.")
HINTS_FAILING: Final = Event("hints_failing", WARNING, "Hints of changes between processes fail. Watchers see changes up to a second later.")
HINTS_RECOVERED: Final = Event("hints_recovered", WARNING, "Hints of changes work again.")
DATABASE_UNUSABLE: Final = Event("database_unusable", DEBUG, "The whole error behind a refused start.")

# Reservations and checkouts.
BREAKER_OPENED: Final = Event("breaker_opened", WARNING, "The Reservation API counts as down for this process: only probes are sent. With the cause.")
BREAKER_CLOSED: Final = Event("breaker_closed", WARNING, "The Reservation API answers again. With the time that it was down.")
RESERVATIONS_PAUSED: Final = Event("reservations_paused", WARNING, "This process noticed that an operator paused all calls to the Reservation API. With the reason.")
RESERVATIONS_RESUMED: Final = Event("reservations_resumed", WARNING, "This process noticed the end of the pause.")
ATTEMPT_FAILED: Final = Event("attempt_failed", INFO, "The Reservation API gave no decision for a reservation. It is tried again.")
PROBE_FAILED: Final = Event("probe_failed", DEBUG, "An attempt failed while the Reservation API is down.")
OUTCOME_UNRECORDED: Final = Event("outcome_unrecorded", WARNING, "The outcome of an attempt could not be stored. The attempt is made again.")
CLAIMS_TAKEN_OVER: Final = Event("claims_taken_over", WARNING, "This process claimed reservations whose last attempt ended without a recorded outcome: its process was killed, stopped, or lost its database. With their number and the first.")
CLAIMS_KEPT: Final = Event("claims_kept", WARNING, "A stop could not hand its claims back. They expire with their leases.")
BATCHES_UNSUPPORTED: Final = Event("batches_unsupported", INFO, "The Reservation API takes no batches. With the cause.")
BATCHES_SUPPORTED: Final = Event("batches_supported", INFO, "The Reservation API takes batches now.")
RESERVATION_ALARM: Final = _alarm("reservation_alarm", "A reservation is not as both sides believe, such as stock that is sold twice.")
RESERVATION_SET_ASIDE: Final = _alarm("reservation_set_aside", "The row of a reservation cannot be processed. Nothing is done until an operator ends it or tries it again.")
CHECKOUT_ALARM: Final = _alarm("checkout_alarm", "A checkout failed or was ended by force.")
CHORE_FAILED: Final = _alarm("chore_failed", "The sweeper cannot do its work for one cart, checkout or user.")
ATTEMPT_ERROR: Final = Event("attempt_error", ERROR, "A bug in an attempt or its record. The attempt is made again. With the traceback.")
ATTEMPTS_RECOVERED: Final = Event("attempts_recovered", WARNING, "Attempts work again after a bug.")
SET_ASIDE_FAILED: Final = Event("set_aside_failed", ERROR, "The row of a reservation fails and cannot be set aside. With the traceback.")
LOOP_FAILING: Final = Event("loop_failing", ERROR, "A bug in a background loop. It goes on. The first of each kind with its traceback.")
LOOP_RECOVERED: Final = Event("loop_recovered", WARNING, "A background loop works again after a bug.")

# Telemetry.
TRACES_LOST: Final = Event("traces_lost", WARNING, "Spans cannot be exported and are lost. With the cause.")
TRACES_EXPORTED: Final = Event("traces_exported", WARNING, "Spans are exported again.")
TRACE_ERROR: Final = Event("trace_error", ERROR, "A bug in the trace of a call. The call is answered. The first of each kind with its traceback.")
TRACE_RECOVERED: Final = Event("trace_recovered", WARNING, "Calls are traced again after a bug.")
METRICS_LOST: Final = Event("metrics_lost", WARNING, "Metrics cannot be exported by OTLP and are lost. With the cause.")
METRICS_EXPORTED: Final = Event("metrics_exported", WARNING, "Metrics are exported by OTLP again.")

# Operators.
OPERATOR_PAUSED: Final = Event("operator_paused", WARNING, "An operator paused all calls to the Reservation API at this process. With the reason.")
OPERATOR_RESUMED: Final = Event("operator_resumed", WARNING, "An operator ended the pause at this process.")
OPERATOR_RETRIED: Final = Event("operator_retried", WARNING, "An operator retried a reservation.")
OPERATOR_RELEASED: Final = Event("operator_released", WARNING, "An operator released a reservation. With the reason.")
OPERATOR_ENDED_CHECKOUT: Final = Event("operator_ended_checkout", WARNING, "An operator ended a checkout. With the reason.")
OPERATOR_ERASED_USER: Final = Event("operator_erased_user", WARNING, "An operator began to erase a user.")
OPERATOR_COMMAND_FAILED: Final = Event("operator_command_failed", ERROR, "An operator's command failed because of the row of a reservation. With the traceback.")

# Certificates, keys and tokens.
CERTIFICATE_LOADED: Final = Event("certificate_loaded", INFO, "A certificate is in use. With its subject and expiry.")
CERTIFICATE_EXPIRING: Final = Event("certificate_expiring", WARNING, "A certificate expires soon, or has expired. Once each.")
FILE_RELOADED: Final = Event("file_reloaded", INFO, "A file with a certificate, key, password or token has changed, and the new one is in use.")
FILE_RESTORED: Final = Event("file_restored", WARNING, "A file that was unusable is as before.")
FILE_UNUSABLE: Final = Event("file_unusable", ERROR, "A file cannot be used, so its last content stays in use. With the cause.")
TOKEN_KEYS_LOADED: Final = Event("token_keys_loaded", INFO, "The keys that verify tokens have changed.")
TOKEN_KEYS_EMPTY: Final = Event("token_keys_empty", WARNING, "The key set has no usable key, so calls with tokens are refused.")
TOKEN_KEY_IGNORED: Final = Event("token_key_ignored", INFO, "A key of the set is for another purpose.")
TOKEN_KEY_REFUSED: Final = Event("token_key_refused", WARNING, "A key of the set cannot or must not be used.")
TOKEN_KEYS_FAILING: Final = Event("token_keys_failing", WARNING, "The key set cannot be loaded. Each cause once.")
TOKEN_KEYS_RECOVERED: Final = Event("token_keys_recovered", WARNING, "The key set is loaded again.")
TOKEN_KEYS_ERROR: Final = Event("token_keys_error", ERROR, "A bug in the load of the key set. With the traceback.")

# The simulator.
SIMULATOR_ERROR: Final = Event("simulator_error", ERROR, "A bug of the simulator. With the traceback.")
# fmt: on

EVENTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Event))
