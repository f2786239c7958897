"""The protocol of a lane as an explicit-state model: small scenarios, every interleaving, every fault up to a bound.

Owns a model of its own, written from the protocol's table and sharing no code with the product but the labels of its
clauses. What holds here holds for the protocol; that the code follows the protocol is for the simulation to show.

    programs   what handlers do, and the scenarios    state      the world as a value
    rules      the protocol's rules, by label          attempts   functions: claim, checkpoint, suspend, commit
    dispatchers  two control planes                    sweeping   their look at inbox and timers
    outside    callers, resolvers, a sending lane      moves      everything that may happen next
    laws       what must hold                          search     all reachable states, and those that are stuck
    mutants    the protocol with one rule missing      proof      what `make prove` and `make test` run

    python -m tests.model --help
"""
