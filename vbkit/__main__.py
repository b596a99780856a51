from vbkit.cli import main

main()
