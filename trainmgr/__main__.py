from trainmgr.cli import main

main()
