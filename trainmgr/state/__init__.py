"""The two pure folds, over telemetry and over the log, and what is read off them. Imports base, contract."""
