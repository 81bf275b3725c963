"""Supporting code of run_sagemaker.py: checks before anything is billed, and fixes for local mode."""
