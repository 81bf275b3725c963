"""Supporting code of run_sagemaker.py: checks before anything is billed, and fixes for the SDK's local mode."""
