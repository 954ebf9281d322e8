/* The row of a lease: what `Lease` and all that stand for a lent buffer are made of (see _lease.py for who owns what).
 * It is here so that one can be made without a call, and ended without one where there is nothing to do. */
#include "objects.h"

static PyMemberDef lease_members[] = {
    FIELD("_home", LEASE_HOME), FIELD("arena", LEASE_ARENA), FIELD("number", LEASE_NUMBER),
    FIELD("length", LEASE_LENGTH), FIELD("_view", LEASE_VIEW), FIELD("pins", LEASE_PINS),
    FIELD("abandoned", LEASE_ABANDONED), FIELD("ended", LEASE_ENDED),
    {"__weaklistoffset__", T_PYSSIZET, PLACE(LEASE_WEAK), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

VISIT_ROW(lease, LEASE_FIELDS)
CLEAR_ROW(lease, LEASE_FIELDS, LEASE_FIELDS)
NEW_ROW(lease, LEASE_FIELDS)

static void lease_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (AT(self, LEASE_WEAK))
        PyObject_ClearWeakRefs(self);
    drop_row(self, LEASE_FIELDS);
}

static void fill_lease(PyObject *self, PyObject *home, PyObject *arena, PyObject *number, PyObject *length)
{
    set(self, LEASE_HOME, home);
    set(self, LEASE_ARENA, arena);
    set(self, LEASE_NUMBER, number);
    set(self, LEASE_LENGTH, length);
    set(self, LEASE_VIEW, Py_None);
    set(self, LEASE_PINS, zero);
    set(self, LEASE_ABANDONED, Py_False);
    set(self, LEASE_ENDED, Py_False);
}

static int lease_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *home, *arena, *number, *length;
    if (!PyArg_ParseTuple(args, "OOO!O!", &home, &arena, &PyLong_Type, &number, &PyLong_Type, &length))
        return -1;
    fill_lease(self, home, arena, number, length);
    return 0;
}

/* A lease for a completion of `group`: made here, or by the group's `lease` where that is no class of this row. */
static PyObject *new_lease(PyObject *group, PyObject *number, PyObject *length)
{
    PyObject *lease = NULL, *arena = NULL, *type = PyObject_GetAttr(group, name_lease);
    if (type && (arena = PyObject_GetAttr(group, name_arena))) {
        if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, lease_type))
            lease = PyObject_CallFunctionObjArgs(type, group, arena, number, length, NULL);
        else if ((lease = PyType_GenericAlloc((PyTypeObject *)type, 0)))
            fill_lease(lease, group, arena, number, length);
    }
    Py_XDECREF(type);
    Py_XDECREF(arena);
    return lease;
}

/* It dies: whoever had it should have released it. */
static void lease_finalize(PyObject *self)
{
    PyObject *length = AT(self, LEASE_LENGTH), *type, *value, *trace;
    if (!length || is_true(self, LEASE_ENDED))
        return;
    PyErr_Fetch(&type, &value, &trace);
    int there = PyObject_IsTrue(length);
    if (there < 0 || (there && tell(self, name__never_released, NULL, NULL) < 0))
        PyErr_WriteUnraisable(self);
    PyErr_Restore(type, value, trace);
}

static PyType_Slot lease_slots[] = {
    ROW_SLOTS(lease),
    {Py_tp_init, lease_init},
    {Py_tp_finalize, lease_finalize},
    {0, NULL},
};

static PyType_Spec lease_spec = {"aiouring._rows.LeaseRow", ROW_SIZE(LEASE_PLACES), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, lease_slots};
