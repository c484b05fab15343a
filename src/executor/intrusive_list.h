// A doubly linked list through its elements: insertion and removal anywhere without memory of its own.
// An element is in at most one list per link. Thread: the owner's.
#pragma once
#include <cstddef>

#include "base/check.h"

namespace ekiben {

template <class T>
struct ListLink {
  T* previous = nullptr;
  T* next = nullptr;
  bool linked = false;
};

template <class T, ListLink<T> T::*kLink>
class IntrusiveList {
 public:
  bool empty() const { return first_ == nullptr; }
  size_t size() const { return size_; }
  T* first() const { return first_; }
  static T* Next(const T* element) { return (element->*kLink).next; }

  // Behind the last element that is not after `element` in the order; from the back, where most belong.
  template <class Less>
  void InsertSorted(T* element, Less less) {
    T* previous = last_;
    while (previous != nullptr && less(*element, *previous)) previous = (previous->*kLink).previous;
    InsertBehind(previous, element);
  }
  void PushBack(T* element) { InsertBehind(last_, element); }
  void Remove(T* element) {
    ListLink<T>& link = element->*kLink;
    CHECK(link.linked);
    (link.previous != nullptr ? (link.previous->*kLink).next : first_) = link.next;
    (link.next != nullptr ? (link.next->*kLink).previous : last_) = link.previous;
    link = {};
    --size_;
  }

 private:
  void InsertBehind(T* previous, T* element) {
    ListLink<T>& link = element->*kLink;
    CHECK(!link.linked);
    T* next = previous != nullptr ? (previous->*kLink).next : first_;
    link = {previous, next, true};
    (previous != nullptr ? (previous->*kLink).next : first_) = element;
    (next != nullptr ? (next->*kLink).previous : last_) = element;
    ++size_;
  }

  T* first_ = nullptr;
  T* last_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ekiben
