from __future__ import annotations

from django.urls import path

from example_project.pictures import runs

urlpatterns = [path(name, view) for name, view in runs.VIEWS.items()]
