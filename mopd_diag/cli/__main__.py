from mopd_diag.cli import main

main()
