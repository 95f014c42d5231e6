"""Benchmark programs, each started as a module; a package, so that no installed `benchmarks` shadows them."""
