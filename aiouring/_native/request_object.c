/* The row of a request: what `Request` and all its kinds are made of (see _request.py for who owns what). */
#include "objects.h"

static PyMemberDef request_members[] = {
    FIELD("fd", REQUEST_FD), FIELD("file", REQUEST_FILE), FIELD("hold", REQUEST_HOLD), FIELD("lease", REQUEST_LEASE),
    FIELD("result", REQUEST_RESULT), FIELD("flags", REQUEST_FLAGS), FIELD("ended", REQUEST_ENDED),
    FIELD("waiter", REQUEST_WAITER), FIELD("user_data", REQUEST_USER_DATA), FIELD("pinned", REQUEST_PINNED),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(request, REQUEST_FIELDS, REQUEST_FIELDS)

static int request_init(PyObject *self, PyObject *args, PyObject *named)
{
    static char *names[] = {"fd", "file", "hold", "lease", NULL};
    PyObject *fd = NULL, *file = Py_None, *hold = Py_None, *lease = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, named, "|OOOO", names, &fd, &file, &hold, &lease))
        return -1;
    put(self, REQUEST_RESULT, PyLong_FromLong(0)); /* small integers are always there */
    put(self, REQUEST_FLAGS, PyLong_FromLong(0));
    if (fd)
        set(self, REQUEST_FD, fd);
    else
        put(self, REQUEST_FD, PyLong_FromLong(-1));
    set(self, REQUEST_FILE, file);
    set(self, REQUEST_HOLD, hold);
    set(self, REQUEST_LEASE, lease);
    set(self, REQUEST_ENDED, Py_False);
    set(self, REQUEST_WAITER, Py_None);
    return 0;
}

static PyType_Slot request_slots[] = {
    ROW_SLOTS(request),
    {Py_tp_init, request_init},
    {0, NULL},
};

static PyType_Spec request_spec = {"aiouring._rows.RequestRow", ROW_SIZE(REQUEST_FIELDS), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, request_slots};
