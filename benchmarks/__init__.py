"""Benchmarks of aiouring against asyncio and uvloop, as ratios measured in one run; see README.md."""
