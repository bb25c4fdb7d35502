from lading_client.cli import main

main()
