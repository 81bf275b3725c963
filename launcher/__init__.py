"""Supporting code of run_sagemaker.py: checks before anything is billed, and fixes of the SDK's local mode."""
