"""An int8 TFLite file in numpy with integers only, held against LiteRT tensor by tensor. Needs no torch."""
