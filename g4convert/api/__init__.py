"""The functions of `from g4convert import ...`: the commands call them, too.

recipes               Resolves a recipe's name and the keywords that override it
plan                  Plans an output from headers
bundled               Counts the token ids that the bundled texts make for a model
calibration_request   Checks a model and the rows of token ids that `calibrate` is to make, and makes them
existing_calibration  Reads a calibration file that exists, if it is the one that was requested
own_calibration       Makes the calibration file of an output if the user names none
led_by_rank_0         Makes a calibration file in rank 0, with the help of the other ranks
quantize              Writes an output and verifies it
verify                Verifies an output against its reference
calibrate             Makes a calibration file from texts
fit                   Chooses bits for each part of a model, and writes a recipe
fit_files             Holds the files of a fit: which it writes and reads, and whether they may be written
check                 Judges which engines load a checkpoint
keywords              Adds notes to errors of these functions: the keywords for the options in their text
load                  Loads a checkpoint into transformers, packed weights as packed words
"""
