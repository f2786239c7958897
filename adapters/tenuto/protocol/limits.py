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

OUT_BYTES_MAX = 64_000
"""What the outgoing entries in a head may weigh: they share it with state and journal. More go as bundles."""

BUNDLE_BYTES_MAX = 300_000
"""What the item of a bundle of outgoing entries may weigh beside a single large one: an item has 400 KB."""

OUT_WAITING_BYTES_MAX = 4_000_000
"""What an invocation may send between two durable points: it is kept in memory until then."""

VALUE_BYTES_MAX = 350_000
"""Largest input or step result that can be made durable: it has its own item when it is not small."""

INLINE_BYTES_MAX = 2_048
"""Inputs and step results above this size go to items of their own: the head is billed whole on every write."""

PARTS_MAX = 64
"""Items into which one large input may be divided, of VALUE_BYTES_MAX each: more than any record is read with."""

INBOX_ITEM_EVENTS_MAX = 200
INBOX_ITEM_BYTES_MAX = 64_000
"""What one inbox item holds of a Kafka source's events, with their ids: it is read whole for the first of them."""

AWAKEABLE_BYTES_MAX = 32_768
"""What an awakeable may be resolved or rejected with: it goes into the waiting lane's head, beside its state."""

AWAKEABLES_INLINE_BYTES_MAX = 32_768
"""What the results of awakeables that sit in the head of one invocation may weigh together.

What comes beyond that gets its own item, and the head holds its name.
"""

AWAKEABLES_BYTES_MAX = 65_536
"""The same, with those names: about 500 results that the run has not taken yet. It takes all at its next turn."""

ANSWER_PUTS_MAX = 20
"""How often the result of an awakeable is tried to be put while others come in between, before it is put off."""

AWAKEABLE_LOOK_MS_MIN = 50
AWAKEABLE_LOOK_MS_MAX = 500
"""How often a function looks for results of awaited awakeables while a step runs: at growing intervals."""

SECRET_BYTES = 16
"""What a run keeps to itself, to make ids of awakeables that nobody can guess."""

EVENT_HEADERS_BYTES_MAX = 100_000
"""What the headers of an event and the raw key of its record may weigh together, packed.

They travel with an event wherever it is stored: through the inbox, the head of a claimed lane and its dead letter. A
record with more is a dead letter before it becomes an event.
"""

PAYLOAD_BYTES_MAX = 6_000_000
"""Largest activation or outcome: a synchronous Lambda invocation carries 6 MB each way (AWS Lambda quotas)."""

WRITE_ATTRIBUTES_MAX = 300
"""Attributes one write may set or remove, so that its expression stays below DynamoDB's 4 KB."""

NAP_SLEEPS_MAX = 8
"""Sleeps that may end with one nap, whose write names them beside up to `SLOTS_PER_WRITE_MAX` others; more suspend."""

SLOTS_PER_WRITE_MAX = 50
"""Journal slots one write adds to a head, and removes: each is named in its expression, within DynamoDB's 4 KB.

More go to their own item.
"""

OUT_PER_WRITE_MAX = 50
"""Outgoing entries one write of an owned run adds to a head. More go as bundles."""

AWAITS_MAX = 1_000
"""Slots that a suspended run names as what it waits for; with more, any result wakes it."""

COMMANDS_MAX = 10_000
"""Commands one invocation may issue: an endless loop of durable steps is a mistake that should show."""

OWN_POSITIONS = 900_000
"""Outbox positions from here on are for entries that no command made; commands stay far below."""

STEP_NAME_BYTES_MAX = 255
"""Longest name of a step, in UTF-8 bytes: it stands in the journal, in log lines and in traces."""

STATE_NAME_BYTES_MAX = 255
"""Longest name of a state value, in UTF-8 bytes: it is part of an attribute's name in the head."""

TARGET_NAME_BYTES_MAX = 128
"""Longest name of a service or handler, in UTF-8 bytes: a service's name is part of every key of its lanes."""

NONCE_BYTES_MAX = 128
"""Longest last part of an invocation's id, in UTF-8 bytes: it is in names of attributes and sort keys. Ours have 25."""

TOPIC_CHARS_MAX = 249
"""Longest name of a Kafka topic (Kafka: `Topic.MAX_NAME_LENGTH`; names are ASCII)."""

FAILURE_TEXT_BYTES_MAX = 4_096
"""Texts of failures are cut to this: those of one invocation share the head with its state and journal."""

METADATA_BYTES_MAX = 2_048
"""What names and values of a terminal error's metadata weigh together; what is more is cut."""

PAUSE_MS_MIN = 10
"""Shortest pause between two attempts, whatever a policy or a failure asks for: a failing handler is no hot loop."""

PAUSE_MS_MAX = 31_536_000_000
"""Longest pause between two attempts: 365 days."""

SLEEP_MS_MAX = 3_155_760_000_000
"""Longest sleep, and longest delay of a message: 100 years. Names of timers have room for times far beyond."""

RETRY_FACTOR_MAX = 1_000
"""Largest factor by which a retry policy may let its pauses grow."""

RETRY_ATTEMPTS_MAX = 1_000_000
"""Largest number of attempts a retry policy may name; None means without end."""

HOLD_SLEEP_MS_MAX = 300
"""Sleeps up to this long stay inside the function: cheaper than a suspension's three writes and an invocation.

A control plane that is not always on may ask for more (`Activation.hold_ms`); a sleep held for longer than this takes
the lease and journals its end first, so that a crash does not begin it again.
"""

HOLD_RETRY_MS_MAX = 1_000
"""Pauses between attempts up to this long stay inside the function, if its deadline allows."""

FLUSH_DELAY_MS_MAX = 20
"""A finished step is durable at the latest this long after it returned."""

FLUSH_RETRY_MS = 250
"""The pause after which a flush is tried again that the table did not answer: the tries of a request come before."""

DEADLINE_MARGIN_MS = 500
"""How long before its deadline a function stops starting work and suspends instead."""

GUARD_MARGIN_MS = 1_000
"""How long after the function's deadline its guard falls due."""

GUARDED_WRITE_MS_MAX = 3_600_000
"""How long after what was put before it a function's write may still come: longer than one lives (900 s) and clocks are
apart."""

TIMER_BUCKET_MS = 60_000
"""Width of one bucket of timers."""

TIMER_SHARDS = 4
"""Partitions per timer bucket, against hot partitions (DynamoDB: 1,000 write units a second each)."""

TIMER_SHARDS_WIDE = 32
"""The same for a bucket that is marked, as those of near minutes are under load."""

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

POOLED_MAX = 8
"""Activations that one invocation carries at most."""

POOLED_MS_MAX = 20
"""So long an invocation that is pooled begins activations; those that are left are asked for alone."""

POOLED_BYTES_MAX = 64 * 1024
"""Bytes that its outcomes take together, but for the first one; and those that one activation may take to join it."""

BESIDE_MAX = 8
"""Activations that an invocation carries at most whose lanes are worked on side by side."""

BESIDE_MS_MAX = 150
"""So long each of these lanes begins events; those that are left are asked for again."""

BESIDE_HOLD_MS_MAX = 50
"""Pauses between attempts up to this long stay inside a function whose lanes wait for each other."""

BESIDE_BYTES_MAX = 2 * 1024 * 1024
"""Bytes that their outcomes take together in an answer. The heads of the others are read."""
