# The machinery of run_sagemaker.py, which imports it; nothing here knows app/.
