@echo off
rem Finds Python 3.11 to 3.13 and hands over to setup_studio.py, as setup.sh does on Linux and macOS.
setlocal
set "PY="
for %%V in (3.13 3.12 3.11) do if not defined PY py -%%V -c "" >nul 2>&1 && set "PY=py -%%V"
if not defined PY python -c "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))" >nul 2>&1 && set "PY=python"
if not defined PY goto missing
%PY% "%~dp0setup_studio.py" %*
exit /b %ERRORLEVEL%

:missing
echo Python 3.11, 3.12 or 3.13 was not found. Install it, open a new window and run this again:
echo     winget install -e --id Python.Python.3.13
exit /b 1
