"""The Streamlit pages of `mopd-diag app`: they read run directories and comparisons, and never load a model."""
