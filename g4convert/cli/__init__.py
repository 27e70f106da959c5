"""Parses the command line, calls one function, prints, and sets the exit status.

start              Starts the program, and handles Ctrl-C during imports
app                Assembles the program and maps errors to exit codes
flags              Spells switches in help without a type
panels             Names the panels of a command's help
completion         Completes names in a shell
next_steps         Prints the command that a user may give next
options            Declares the options that several commands share
recipe_options     Declares the options that are values of a recipe, and gives them to commands
calibrate_options  Declares the options of a calibration
verify_options     Declares the options of a verification
fit_options        Declares the options of a fit
generate_options   Declares the options of `generate`
plan               `g4convert plan`
quantize           `g4convert quantize`
calibrate          `g4convert calibrate`
fit                `g4convert fit`
verify             `g4convert verify`
check              `g4convert check`
reference          `g4convert reference`
generate           `g4convert generate`
inspect            `g4convert inspect`
recipe             `g4convert recipe ...`
demo               `g4convert demo`
verification       Runs a verification for the commands that end with one
printing           Prints JSON, plans and settings
show               Makes consoles; prints errors, settings, descriptions and demonstrations
show_engines       Prints verdicts of engines
show_fit           Prints fits
show_methods       Prints what each method of quantization takes
show_plan          Prints plans
show_report        Prints reports
show_summary       Prints the closing card of a conversion
talk               Prints the answers of `generate`
stops              Handles Ctrl-C and SIGTERM while a command runs
streams            Checks standard streams, arguments and the current directory
crashes            Reports unexpected exceptions, with the traceback in a file
tables             Lays out tables for the width of the terminal
"""
