"""Exporters: one file per format. `edgekit list exporters` names them."""
