"""What happened in a run, instruction by instruction: traces for Perfetto and curves over time. See README.md."""
