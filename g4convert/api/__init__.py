"""The functions of `from g4convert import ...`: the commands call them, too.

recipes          Resolves a recipe's name and the keywords that override it
plan             Plans an output from headers
bundled          Counts the token ids that the bundled texts make for a model
made_before      Reads a calibration file that is there already, if it is the one that is asked for
own_calibration  Makes the calibration file of an output if the user names none
led              Runs what makes a calibration file in rank 0, with the help of the others
quantize         Writes an output and verifies it
verify           Verifies an output against its reference
asked            Makes the rows of token ids that `calibrate` is asked for
calibrate        Makes a calibration file from texts
fit              Chooses bits for each part of a model, and writes a recipe
check            Judges which engines load a checkpoint
keywords         Names in errors of these functions the keywords for the options in their text
load             Loads a checkpoint into transformers, packed weights as packed words
"""
