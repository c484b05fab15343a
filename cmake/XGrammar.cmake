# xgrammar's C++ core from its PyPI source distribution, for structured outputs (src/text/grammar.h). `./dev` fetches it
# into the cache; EKIBEN_XGRAMMAR names its folder, and `auto` is the cache's. Where it is not, the server is built
# without and refuses structured requests by name.
# A target of our own: its CMake wants Python bindings, -Werror and link-time optimisation, which costs every link 35 s.
set(EKIBEN_XGRAMMAR "auto" CACHE STRING "Folder of xgrammar 0.2.8's source; auto: in .cache; off")
set(xgrammar_folder ${EKIBEN_XGRAMMAR})
if(EKIBEN_XGRAMMAR STREQUAL "auto")
  set(xgrammar_folder ${PROJECT_SOURCE_DIR}/.cache/xgrammar-0.2.8)
endif()
set(EKIBEN_XGRAMMAR_FOUND OFF)
if(EXISTS ${xgrammar_folder}/include/xgrammar/xgrammar.h)
  set(EKIBEN_XGRAMMAR_FOUND ON)
  file(GLOB_RECURSE xgrammar_sources ${xgrammar_folder}/cpp/*.cc)
  list(FILTER xgrammar_sources EXCLUDE REGEX "/cpp/tvm_ffi/")
  add_library(xgrammar STATIC ${xgrammar_sources})
  target_include_directories(xgrammar SYSTEM PUBLIC ${xgrammar_folder}/include ${xgrammar_folder}/3rdparty/dlpack/include)
  target_include_directories(xgrammar SYSTEM PRIVATE ${xgrammar_folder}/cpp ${xgrammar_folder}/3rdparty/picojson)
  target_compile_definitions(xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
  target_compile_options(xgrammar PRIVATE -w)
  target_link_libraries(xgrammar PRIVATE Threads::Threads)
elseif(NOT EKIBEN_XGRAMMAR STREQUAL "off")
  message(STATUS "No xgrammar source in ${xgrammar_folder}: structured outputs are left out (./dev build fetches it)")
endif()
