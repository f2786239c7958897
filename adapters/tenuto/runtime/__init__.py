"""The asyncio driver of the replay machine inside a function, and its durable writes.

Owns how a handler's coroutine is run, suspended, retried and committed. Does not own the machine's rules
(`tenuto.machine`), the writes' meaning (`tenuto.lane`) or the shape of Lambda events (`tenuto.hosts`).
"""
