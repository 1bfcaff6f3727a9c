"""The data plane: one asyncio process beside each workload."""
