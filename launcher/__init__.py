"""What run_sagemaker.py need not show. Nothing here knows app/."""
