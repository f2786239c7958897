"""The deterministic simulation: production code on virtual time, over in-memory twins that fail by a seeded plan.

Owns the world around the product (loop, processes, faults, twins, programs) and the laws it is held against. A seed
decides everything, so a failing one replays.

    loop      virtual time            gate      one process and its only way to the world
    faults    what goes wrong when    twins     table, functions, scheduler; Kafka's is in `tests.support`
    programs  what handlers do        oracles   what must hold, whatever happens
    control   processes that run all the time, and what both shapes are asked for
    instances the dispatcher as a function, with event_source, its pollers of Kafka
    world     all of it together      mutants   the protocol with one clause missing
"""
