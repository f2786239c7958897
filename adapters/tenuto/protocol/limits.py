"""Limits both sides must agree on. Sizes are bytes, durations milliseconds.

Owns numbers that end up in stored records or in the contract between control plane and function. The control plane's
own tuning lives in `tenuto_control.limits`.
"""

from __future__ import annotations

STATE_BYTES_MAX = 120_000
"""What the state of one lane may weigh.

DynamoDB refuses items above 400 KB; while a run is suspended its head holds state twice (as published and as first
seen), besides outbox and journal. Every write is billed by the head's size, so smaller is also cheaper.
"""

OUT_BYTES_MAX = 100_000
"""What the outgoing entries of one write may weigh: they share the head with state and journal."""

VALUE_BYTES_MAX = 350_000
"""Largest input or step result that can be made durable: it has an item of its own when it is not small."""

INLINE_BYTES_MAX = 2_048
"""Inputs and step results above this size go to items of their own: the head is billed whole on every write."""

AWAKEABLE_BYTES_MAX = 32_768
"""What an awakeable may be resolved or rejected with: it goes into the waiting lane's head, beside its state."""

AWAKEABLES_BYTES_MAX = 65_536
"""What the results of awakeables that sit in the head of one invocation may weigh together."""

PAYLOAD_BYTES_MAX = 6_000_000
"""Largest activation or outcome: a synchronous Lambda invocation carries 6 MB each way (AWS Lambda quotas)."""

WRITE_ATTRIBUTES_MAX = 300
"""Attributes one write may set or remove, so that its expression stays below DynamoDB's 4 KB."""

SLOTS_PER_WRITE_MAX = 50
"""Journal slots one write adds: each is named in its update and in its condition, within DynamoDB's 4 KB."""

OUT_PER_WRITE_MAX = 50
"""Outgoing entries one write of an owned run adds, each with a journal slot. Checkpoints take what is more."""

OUT_WAITING_MAX = 150
"""Messages an invocation may send between two durable points."""

AWAITS_MAX = 50
"""Slots one suspension waits for, each named in its condition; what else is awaited is looked at after those."""

COMMANDS_MAX = 10_000
"""Commands one invocation may issue: an endless loop of durable steps is a mistake that should show."""

OWN_POSITIONS = 900_000
"""Outbox positions from here on are for entries that no command made; commands stay far below."""

HOLD_SLEEP_MS_MAX = 300
"""Sleeps up to this long stay inside the function: cheaper than a suspension's three writes and an invocation.

A control plane that is not always on may ask for more (`Activation.hold_ms`); a sleep held for longer than this takes
the lease and journals its end first, so that a crash does not begin it anew.
"""

HOLD_RETRY_MS_MAX = 1_000
"""Pauses between attempts up to this long stay inside the function, if its deadline allows."""

FLUSH_DELAY_MS_MAX = 20
"""A finished step is durable at the latest this long after it returned."""

DEADLINE_MARGIN_MS = 500
"""How long before its deadline a function stops starting work and suspends instead."""

GUARD_MARGIN_MS = 1_000
"""How long after the function's deadline its guard falls due."""

TIMER_BUCKET_MS = 60_000
"""Width of one bucket of timers."""

TIMER_SHARDS = 4
"""Partitions per timer bucket, against hot partitions (DynamoDB: 1,000 write units a second each)."""

TOMBSTONE_TTL_S = 86_400
"""How long a drained inbox item keeps refusing duplicates: longer than any sender or its process may live."""

RESULT_TTL_S = 86_400
"""How long the result of a call can be attached to."""

FINISHED_TTL_MS = 900_000
"""How long a head remembers a finished call or message that nobody trimmed."""

FINISHED_CALL_MS = RESULT_TTL_S * 1_000 // 2
"""How long a head's note that a call has finished counts without a stored result.

A quiet lane is never trimmed, so the note may outlive the result; then the idempotency key is free again. A result is
stored long before this, and kept for longer, whatever clocks say.
"""

LANE_TTL_S = 86_400
"""How long the record of a finished invocation of an unkeyed service is kept."""
