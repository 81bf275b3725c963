"""What run_sagemaker.py need not show: checks before anything costs, and fixes of the SDK's local mode."""
