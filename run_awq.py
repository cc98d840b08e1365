from awq_cli.main import main

main()
