"""The fused network: folded weights, runtimes, the captured engine."""
